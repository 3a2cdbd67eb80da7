"""Life after the first run: more steps, training states that are deleted, runs that start from an adapter."""

import hashlib
import shutil
import time

import pytest
import torch
from conftest import StopAfter, tiny_pipe, weights

from hra_diffusion import interop
from hra_diffusion.adapters.adapter_file import read_info
from training import config as configs
from training.errors import TrainingError
from training.init_adapter import settings_of
from training.loop import train
from training.runs.events import Notice, Step
from training.runs.queue import Queue
from training.runs.run_folder import Run, RunError


@pytest.fixture(scope="module")
def short(settings):
    """A function that returns the configuration of a run without samples and class images."""

    def make(**changes):
        fixed = {"sample_prompts": [], "prior_loss_weight": 0, "lr_scheduler": "constant", "train_text_encoder": False}
        return settings(**(fixed | changes))

    return make


@pytest.fixture(scope="module")
def finished(short, tmp_path_factory):
    """The folder of a finished run."""
    return train(short(), tmp_path_factory.mktemp("finished")).parent


@pytest.fixture
def output(finished, tmp_path):
    """An outputs folder with a copy of the finished run."""
    shutil.copytree(finished, tmp_path / "outputs" / "Rex")
    return tmp_path / "outputs"


def test_a_finished_run_goes_on_as_if_it_had_never_ended(short, output, tmp_path):
    whole = weights(train(short(steps=6), tmp_path / "whole"))
    events = []
    adapter = train(short(steps=6), output, [events.append], resume=True)
    assert torch.equal(weights(adapter), whole)
    assert [event.step for event in events if isinstance(event, Step)] == [5, 6]
    run = Run(output / "Rex")
    assert run.finished and run.state.step == run.config.steps == 6
    assert train(run.config, output, [events.append], resume=True) == adapter, "nothing is left to do"
    with pytest.raises(RunError, match="steps 6, not 5"):
        train(short(steps=5), output, resume=True)


def test_going_on_says_which_learning_rate_follows(short, tmp_path):
    config = short(lr_scheduler="linear")
    train(config, tmp_path)
    events = []
    train(short(lr_scheduler="linear", steps=8), tmp_path, [events.append], resume=True)
    (notice,) = (event.message for event in events if isinstance(event, Notice) and "goes on" in event.message)
    assert "of 4 steps goes on from step 4 to 8" in notice and "is now 0.005" in notice and "linear schedule" in notice
    assert next(event.learning_rate for event in events if isinstance(event, Step)) == pytest.approx(0.005)


def test_going_on_survives_an_interruption(short, output, tmp_path):
    whole = weights(train(short(steps=7), tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(short(steps=7), output, [StopAfter(5)], resume=True)
    run = Run(output / "Rex")
    assert run.state.status == "stopped" and run.config.steps == 7
    assert torch.equal(weights(train(run.config, output, resume=True)), whole)


def test_the_queue_takes_a_finished_run_for_more_steps(output):
    queue = Queue(output)
    with pytest.raises(RunError, match="'Rex' has trained 4 steps; ask for more than that"):
        queue.resume("Rex", steps=4)
    queue.resume("Rex", steps=6)
    run = Run(output / "Rex")
    assert queue.waiting() == ["Rex"] and (run.state.step, run.state.steps) == (4, 6)
    train(run.config, output, resume=True)
    assert run.finished and run.state.step == 6


@pytest.mark.parametrize(("changes", "newest"), [({}, ["000003", "000004"]), ({"keep_states": 1}, ["000004"])])
def test_only_the_newest_training_states_are_kept(short, tmp_path, changes, newest):
    kept = []

    def watch(event):
        if isinstance(event, Step):
            kept.append([folder.name for folder in run.states()])

    run = Run(tmp_path / "Rex")
    train(short(steps=5, checkpoint_every=1, **changes), tmp_path, [watch])
    assert kept[-1] == newest, "by default one more, should the newest be damaged"
    assert [folder.name for folder in run.states()] == ["000005"]
    run.prune_states(3)
    assert len(run.states()) == 1, "fewer than are kept"
    assert len(run.checkpoints()) == 5 and all((f / "adapter.safetensors").is_file() for f in run.checkpoints())


def test_without_training_states_a_run_can_not_go_on(short, output):
    Queue(output).drop_states("Rex")
    run = Run(output / "Rex")
    assert not run.states() and run.finished
    with pytest.raises(RunError, match=r"were deleted.* start another --name .* --init-adapter .*000004"):
        train(short(steps=6), output, resume=True)


def test_a_run_starts_from_an_adapter_of_its_kind(short, output):
    adapter = output / "Rex" / "Rex.safetensors"
    config = short(name="Max", init_adapter=str(adapter), learning_rate=1e-9)
    started = train(config, output)
    assert torch.allclose(weights(started), weights(adapter), atol=1e-6) and weights(adapter).abs().max() > 0
    digest = hashlib.sha256(adapter.read_bytes()).hexdigest()
    identity = Run(output / "Max").identity
    assert identity is not None and identity.init_sha256 == read_info(started).training["init_sha256"] == digest


def test_a_run_resumes_without_the_adapter_that_it_started_from(short, output, tmp_path):
    adapter = output / "Rex" / "Rex.safetensors"
    config = short(name="Max", init_adapter=str(adapter))
    whole = weights(train(config, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config, output, [StopAfter(3)])
    adapter.unlink()
    assert torch.equal(weights(train(config, output, resume=True)), whole)
    identity = Run(output / "Max").identity
    assert identity is not None and identity.init_sha256


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "lora"}, "has method hra, not lora; use --method hra"),
        ({"options": {"rank": 4}}, "has rank 8, not 4; use --rank 8"),
        ({"exclude": ".*attn2.*"}, r"this run does not adapt unet\..*attn2.*--exclude"),
        ({"train_text_encoder": True}, r"it has no text_encoder\..*--train-text-encoder"),
        ({"ranks": {".*attn2.*": 4}}, r"attn2\..* is \(32, 8\) in it, not \(32, 4\).*ranks"),
    ],
)
def test_an_adapter_of_another_kind_is_refused_with_the_flag_to_change(short, finished, tmp_path, changes, said):
    with pytest.raises(TrainingError, match=said):
        train(short(**({"name": "Max", "init_adapter": str(finished / "Rex.safetensors")} | changes)), tmp_path)


def test_a_run_starts_from_an_imported_adapter(short, tmp_path):
    """A LoRA that went through kohya's format: its layers are found by the names of its file."""
    config = short(method="lora", options={"rank": 4, "alpha": 2}, targets="attention+feed-forward")
    pipe = tiny_pipe()
    train(config, tmp_path, pipe=pipe)
    exported = interop.export(pipe, "Rex", "kohya", tmp_path / "Rex-kohya.safetensors").path
    imported, _ = interop.import_adapter(tiny_pipe(), exported, tmp_path, "Theirs")
    values = settings_of(read_info(imported))
    assert values["method"] == "lora" and values["options"]["rank"] == 4
    fresh = configs.parse(
        config.model_dump(mode="json") | values | {"name": "Max", "init_adapter": str(imported), "learning_rate": 1e-9}
    )
    started = train(fresh, tmp_path, pipe=tiny_pipe())
    assert torch.allclose(weights(started), weights(imported), atol=1e-5)


@pytest.mark.parametrize("asked", [True, False])
def test_a_run_of_the_command_line_continues_after_a_power_cut_if_asked_to(short, tmp_path, asked):
    states = []
    run = Run(tmp_path / "Rex")
    train(short(auto_resume=asked), tmp_path, [lambda event: states.append(run.state)])
    during = next(state for state in states if state.status == "running")
    run.write_state("running", 2, 4, queued=during.queued)  # as a power cut leaves it
    Queue(tmp_path).restore_interrupted()
    assert run.state.status == ("waiting" if asked else "running")
    assert (during.queued is not None and during.queued <= time.time()) == asked
