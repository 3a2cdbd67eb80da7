"""The optimisers: exact resumes, averages, learning rates, memory, and what is refused."""

import sys

import pytest
import torch
from conftest import StopAfter, weights
from safetensors.torch import load_file
from sessions import make_session

from training.errors import TrainingError
from training.loop import train
from training.memory.footprint import state_bytes
from training.presets import defaults
from training.runs.checkpoint import averaged, restore, training_state
from training.runs.events import Notice, Step
from training.session.optimizer import LIBRARIES, check_optimizer, set_learning_rate
from training.step import TrainingStep

ON_CPU = [name for name in LIBRARIES if not name.startswith("paged")]
QUICK = {"prior_loss_weight": 0, "train_text_encoder": False, "sample_prompts": [], "learning_rate": None}
CPU = torch.device("cpu")


@pytest.mark.parametrize("optimizer", ON_CPU)
def test_a_resumed_run_equals_an_uninterrupted_one(settings, tmp_path, optimizer):
    config = settings(optimizer=optimizer, method="lora", steps=4, checkpoint_every=100, lr_warmup_steps=2, **QUICK)
    whole, events = weights(train(config, tmp_path / "whole")), []
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [StopAfter(2)])
    assert torch.equal(weights(train(config, tmp_path / "parts", [events.append], resume=True)), whole)
    assert all(event.learning_rate > 0 for event in events if isinstance(event, Step))


@pytest.mark.parametrize("optimizer", ["adamw", *ON_CPU])
def test_the_predicted_state_is_that_of_the_optimizer(settings, tmp_path, optimizer):
    session = make_session(settings(optimizer=optimizer, method="hra", **QUICK), tmp_path)
    TrainingStep(session)(1e-3)
    for parameter in session.parameters.values():
        state = session.optimizer.state[parameter]
        tensors = [value for name, value in state.items() if isinstance(value, torch.Tensor) and name != "step"]
        size = sum(value.nbytes for value in tensors if value.dim())
        assert size == state_bytes(optimizer, parameter.shape)


def test_schedule_free_adapters_are_the_averages(settings, tmp_path):
    """The parameters in training are ``y = 0.9 x + 0.1 z`` for the averages x (arXiv 2405.15682, equation 3)."""
    config = settings(optimizer="schedule-free-adamw", method="lora", **QUICK)
    file = train(config, tmp_path)
    state = load_file(tmp_path / "Rex" / "checkpoints" / "000004" / "training.safetensors")
    assert config.lr_scheduler == "constant"
    for key, average in load_file(file).items():
        y, z = state[f"parameter/{key}"], state[f"moment/z/{key}"]
        torch.testing.assert_close(average, (y - 0.1 * z) / 0.9)


def test_averages_leave_the_training_as_it_is(settings, tmp_path):
    session = make_session(settings(optimizer="schedule-free-adamw", **QUICK), tmp_path)
    step = TrainingStep(session)
    step(1e-3), step(1e-3)
    before = [parameter.detach().clone() for parameter in session.parameters.values()]
    with averaged(session):
        assert any(not torch.equal(p, old) for p, old in zip(session.parameters.values(), before, strict=True))
    assert all(torch.equal(p, old) for p, old in zip(session.parameters.values(), before, strict=True))
    step(1e-3)


def test_prodigy_reports_the_rate_that_it_finds(settings, tmp_path):
    rates, notices = [], []
    for name, changes in {"Usual": QUICK, "Low": QUICK | {"learning_rate": 1e-4}}.items():
        config, events = settings(name=name, optimizer="prodigy", method="lora", **changes), []
        train(config, tmp_path, [events.append])
        rates += [event.learning_rate for event in events if isinstance(event, Step) and event.step == 1]
        notices += [event.message for event in events if isinstance(event, Notice) and "Prodigy" in event.message]
        assert config.text_encoder_lr_scale == 1
    assert rates == pytest.approx([1e-5, 1e-9]), "its initial estimate, times the learning rate"
    assert len(notices) == 1 and "1 is usual" in notices[0]


def test_a_checkpoint_holds_what_prodigy_has_found(settings, tmp_path):
    sessions = [make_session(settings(optimizer="prodigy", **QUICK), tmp_path) for _ in range(2)]
    TrainingStep(sessions[0])(1.0)
    found = {"d": 0.1, "d_max": 0.2, "d_numerator": 1 / 3, "k": 7}
    for group in sessions[0].optimizer.param_groups:
        group.update(found)
    restore(sessions[1], training_state(sessions[0]))
    for group in sessions[1].optimizer.param_groups:
        assert {name: group[name] for name in found} == found


def test_lora_plus_gives_up_matrices_a_higher_rate(settings, tmp_path):
    changes = {"lora_plus_ratio": 16, "text_encoder_lr_scale": 0.5, "train_text_encoder": True, "prior_loss_weight": 0}
    session = make_session(settings(method="lora", **changes), tmp_path)
    set_learning_rate(session.optimizer, 1e-3)
    rates = {p: group["lr"] for group in session.optimizer.param_groups for p in group["params"]}
    for key, parameter in session.parameters.items():
        expected = (1e-3 if key.startswith("unet.") else 5e-4) * (16 if key.endswith(".up") else 1)
        assert rates[parameter] == pytest.approx(expected), key


def test_default_rates_depend_on_the_optimizer():
    rates = {name: defaults("a/b", "lora", "quick", name)["learning_rate"] for name in ("adamw", "lion", "prodigy")}
    assert rates == {"adamw": 1e-4, "lion": pytest.approx(2e-5), "prodigy": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "paged-adamw8bit"}, "needs an NVIDIA GPU; use adamw or adamw8bit"),
        ({"method": "hra", "lora_plus_ratio": 16}, "is for methods with up and down matrices; hra has none"),
        ({"optimizer": "prodigy", "method": "lora", "lora_plus_ratio": 2}, "one learning rate for all"),
        ({"optimizer": "prodigy", "train_text_encoder": True, "text_encoder_lr_scale": 0.5}, "one learning rate for"),
    ],
)
def test_settings_that_an_optimizer_lacks_are_refused_before_a_run_begins(settings, tmp_path, changes, message):
    with pytest.raises(TrainingError, match=message):
        train(settings(**changes), tmp_path)
    assert not (tmp_path / "Rex").exists()


@pytest.mark.parametrize(
    ("optimizer", "package", "extra"),
    [("prodigy", "prodigyopt", "optimizers"), ("schedule-free-adamw", "schedulefree", "optimizers")],
)
def test_a_missing_package_is_named(settings, monkeypatch, optimizer, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TrainingError, match=rf"needs {package}: pip install 'hra-diffusion\[{extra}\]'"):
        check_optimizer(settings(optimizer=optimizer), CPU)


def test_two_averages_are_refused(settings):
    with pytest.raises(ValueError, match="averages the weights itself"):
        settings(optimizer="schedule-free-adamw", ema_decay=0.9)
