"""Validation: a photo is held out, its loss is computed at fixed steps, and training may stop early."""

import dataclasses
import json

import pytest
import torch
from conftest import StopAfter, save_photos, weights
from sessions import make_session

from hra_diffusion.evaluation.clip import Score
from training import validation
from training.data.dataset import load_dataset
from training.data.validation_photo import held_out_photo
from training.loop import train
from training.runs import progress
from training.runs.events import Best, Notice, Step, Validated
from training.runs.run_folder import Run
from training.scoring import choose

GETS_WORSE = {"method": "lora", "learning_rate": 0.3, "lr_scheduler": "constant"}


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("five"), 5)


@pytest.fixture
def validated(settings, five):
    """A function that returns the configuration of a run that holds out a photo."""

    def make(**changes):
        fixed = {"photos": [str(five)], "sample_prompts": [], "prior_loss_weight": 0, "train_text_encoder": False}
        return settings(**(fixed | {"validation": "3.jpg", "steps": 5} | changes))

    return make


def test_training_does_not_see_the_photo_that_is_held_out(validated, tmp_path, five):
    session = make_session(validated(), tmp_path)
    assert len(session.photos[0].mean) == 4 and session.validation is not None and len(session.validation.mean) == 1
    alone = make_session(validated(validation="none"), tmp_path)
    assert torch.equal(session.validation.mean[0], alone.photos[0].mean[3]) and alone.validation is None
    others = [path for path in sorted(five.glob("*.jpg")) if path.name != "3.jpg"]
    without = train(validated(validation="none", photos=others), tmp_path / "without")
    assert torch.equal(weights(train(validated(), tmp_path / "with")), weights(without))


def test_the_photo_is_chosen_by_name_or_by_the_seed(five):
    photos = load_dataset([five], 64).photos
    assert held_out_photo(photos, "none", 0) is None
    assert held_out_photo(photos, "2.jpg", 0) == held_out_photo(photos, str(photos[2].path), 0) == photos[2]
    chosen = [held_out_photo(photos, "auto", seed) for seed in range(20)]
    assert chosen[0] == held_out_photo(photos, "auto", 0) and len({photo.path for photo in chosen if photo}) > 2


@pytest.mark.parametrize(
    ("validation", "count", "said"),
    [
        ("9.jpg", 5, r"9\.jpg is not among the photos; use auto, none or one of 0\.jpg, 1\.jpg"),
        ("auto", 3, "needs at least 4 of them, not 3"),
    ],
)
def test_a_photo_that_can_not_be_held_out_is_an_error_before_the_run_begins(
    validated, tmp_path, five, validation, count, said
):
    photos = sorted(five.glob("*.jpg"))[:count]
    with pytest.raises(ValueError, match=said):
        train(validated(photos=photos, validation=validation), tmp_path)
    assert not (tmp_path / "Rex").exists()


def test_the_loss_is_the_same_at_the_same_weights_and_changes_with_them(validated, tmp_path):
    session = make_session(validated(options={"rank": 4, "dropout": 0.5}, batch_size=3, method="lora"), tmp_path)
    first = validation.validation_loss(session)
    assert validation.validation_loss(session) == first > 0 and session.denoiser.training
    session.config = session.config.model_copy(update={"batch_size": 16})
    assert validation.validation_loss(session) == pytest.approx(first, rel=1e-5), "whatever the batch size"
    with torch.no_grad():
        for parameter in session.parameters.values():
            parameter.add_(0.3)
    assert validation.validation_loss(session) != first


def test_losses_are_logged_beside_those_of_training(validated, tmp_path):
    events = []
    train(validated(), tmp_path, [events.append])
    assert [event.step for event in events if isinstance(event, Validated)] == [0, 2, 4, 5]
    state = progress.read(Run(tmp_path / "Rex"))
    assert list(state.validation) == [0, 2, 4, 5] and all(loss > 0 for loss in state.validation.values())
    assert any("validation loss after step 4: 0." in line or "validation loss after step 4: 1." in line
               for line in state.log)  # fmt: skip
    events.clear()
    train(validated(name="Max", validation_every=1), tmp_path, [events.append])
    assert [event.step for event in events if isinstance(event, Validated)] == [0, 1, 2, 3, 4, 5]
    best = [event for event in events if isinstance(event, Best)]
    assert len(best) == 1 and best[0].step in (2, 4, 5) and "validation loss is" in best[0].reason


def test_validation_changes_no_weights_of_a_run_on_the_same_photos(validated, tmp_path):
    often = weights(train(validated(validation_every=1), tmp_path / "often"))
    assert torch.equal(weights(train(validated(validation_every=100), tmp_path / "never")), often)


def test_early_stop_ends_a_run_that_gets_worse(validated, tmp_path):
    events = []
    config = validated(steps=9, validation_every=1, early_stop=2, **GETS_WORSE)
    adapter = train(config, tmp_path, [events.append])
    losses = {event.step: event.loss for event in events if isinstance(event, Validated)}
    last = max(losses)
    assert last < 9 and min(losses, key=lambda step: losses[step]) == last - 2
    run = Run(tmp_path / "Rex")
    assert run.finished and run.state.step == last and run.checkpoints()[-1].name == f"{last:06d}"
    assert any(isinstance(event, Notice) and f"stopped early at step {last}" in event.message for event in events)
    assert train(run.config, tmp_path, resume=True) == adapter and run.state.step == last, "it has finished"
    train(run.config.model_copy(update={"early_stop": 0, "validation_every": None}), tmp_path, resume=True)
    assert run.state.step == 9, "unless the early stop is lifted"


def test_a_resumed_run_stops_early_at_the_same_step(validated, tmp_path):
    config = validated(steps=9, validation_every=1, early_stop=2, **GETS_WORSE)
    train(config, tmp_path / "whole")
    last = Run(tmp_path / "whole" / "Rex").state.step
    assert 1 < last < 9
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [StopAfter(last - 1)])
    train(config, tmp_path / "parts", resume=True)
    assert Run(tmp_path / "parts" / "Rex").state.step == last


def test_early_stop_needs_a_photo(validated):
    with pytest.raises(ValueError, match="early_stop needs a validation photo"):
        validated(validation="none", early_stop=1)


def test_steps_log_the_norm_of_their_gradients(validated, tmp_path):
    events = []
    train(validated(), tmp_path, [events.append])
    logged = [json.loads(line) for line in (tmp_path / "Rex" / "events.jsonl").read_text().splitlines()]
    norms = [event["norm"] for event in logged if event["event"] == "step"]
    assert norms == [event.norm for event in events if isinstance(event, Step)] and min(norms) > 0
    assert dataclasses.asdict(Step(1, 2, 0.1, 0.1, 0.1))["norm"] == 0


def best(scores, losses=None, last=100):
    choice = choose({step: Score(*pair) for step, pair in scores.items()}, losses or {}, last)
    return choice and choice.step


def test_the_best_checkpoint_by_scores_and_validation_losses():
    equal = {0: (0.1, 0.9), 50: (0.70, 0.32), 75: (0.71, 0.32), 100: (0.70, 0.32)}
    assert best(equal) == 100, "equal scores: the last"
    assert best(equal, {50: 0.10, 75: 0.12, 100: 0.12}) == 50, "equal scores: the lowest validation loss"
    assert best(equal, {50: 0.1195, 75: 0.13, 100: 0.12}) == 100, "equal losses: the last"
    assert best({50: (0.9, 0.3), 100: (0.5, 0.3)}, {50: 0.2, 100: 0.1}) == 50, "scores come first"
    assert best({}, {50: 0.1, 100: 0.2}) == 50 and best({0: (0.9, 0.9)}) is None and best({}) is None


def test_the_reason_says_both_figures_in_words():
    choice = choose({50: Score(0.74, 0.32), 100: Score(0.70, 0.32)}, {50: 0.1, 100: 0.125}, 100)
    assert choice is not None and choice.reason == (
        "step 50 may be better than the last: its samples score 74 and 32 of 100 for similarity to the photos and to "
        "the prompts, those of step 100 70 and 32; its validation loss is 0.1000 (the lowest), that of step 100 0.1250 "
        "(CLIP proxies and losses from a few images)"
    )
