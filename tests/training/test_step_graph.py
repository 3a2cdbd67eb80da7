"""The captured step, with a fake graph on the CPU whose replay calls the step again."""

import pytest
import torch
from conftest import StopAfter, tiny_pipe, weights

from hra_diffusion.adapters import registry
from training import step_graph
from training.loop import train
from training.memory.fit import fit_to_limit
from training.memory.footprint import GIB, predict_footprint
from training.runs.events import Notice, Step
from training.step_graph import obstacle, relative_error, uses_graph

QUICK = {"sample_prompts": [], "prior_loss_weight": 0, "train_text_encoder": False}


class FakeGraph:
    """Captures a function by calling it a few times, as the warm-up does. Each replay calls it again.

    Attributes:
        replays: number of replays.
        around: called in place of the function's own replay, with the step and the function.
    """

    def __init__(self, around=lambda step, function: function()):
        self.replays, self.around = 0, around

    def capture(self, function):
        for _ in range(3):
            function()

        def replay():
            self.replays += 1
            self.around(function.__self__, function)

        return replay


@pytest.fixture
def use_graph(monkeypatch):
    """A function that makes steps on the CPU use a fake graph, which it returns."""

    def use(**options):
        graph = FakeGraph(**options)
        monkeypatch.setitem(step_graph.CAPTURES, "cpu", graph.capture)
        return graph

    return use


def notices(events):
    return [event.message for event in events if isinstance(event, Notice)]


VARIANTS = {
    "text encoder, class images": {},
    "accumulation, average": {"gradient_accumulation_steps": 2, "ema_decay": 0.9, "lr_scheduler": "linear", **QUICK},
    "base output": {"preservation": "base-output", "gradient_checkpointing": True, "sample_prompts": []},
    "checkpointing": {"gradient_checkpointing": True, "method": "lora", **QUICK},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_run_with_a_graph_equals_an_eager_one(settings, tmp_path, use_graph, changes):
    """The check at the start changes neither parameters nor the optimiser's state."""
    config = settings(sample_every=0, **changes)
    eager, events = weights(train(config, tmp_path / "eager")), []
    graph = use_graph()
    assert torch.equal(weights(train(config, tmp_path / "graph", [events.append])), eager)
    assert graph.replays == 1 + config.steps and not notices(events), "one replay for the check"


def test_a_resumed_run_with_a_graph_equals_an_uninterrupted_one(settings, tmp_path, use_graph):
    config = settings(**QUICK, steps=5, ema_decay=0.9)
    whole = weights(train(config, tmp_path / "whole"))
    use_graph()
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [StopAfter(3)])
    assert torch.equal(weights(train(config, tmp_path / "parts", resume=True)), whole)


def test_a_graph_can_be_turned_off(settings, tmp_path, use_graph):
    graph = use_graph()
    with pytest.raises(KeyboardInterrupt):
        train(settings(**QUICK), tmp_path, [StopAfter(2)])
    replays = graph.replays
    train(settings(**QUICK, cuda_graph="off"), tmp_path, resume=True)
    assert graph.replays == replays > 0, "also when a run is resumed"


def with_values_of_the_capture(attribute):
    """A replay that does not read some of its inputs again: it has those of the first call."""
    kept = {}

    def replay(step, function):
        for number, batch in enumerate(step.inputs):
            tensor = getattr(batch, attribute)
            tensor.copy_(kept.setdefault(number, torch.zeros_like(tensor)))
        function()

    return replay


def without_learning_rate(step, function):
    for group in step.session.optimizer.param_groups:
        group["lr"] = 0.0
    function()


def with_initial_parameters(step, function):
    """A replay that computes gradients at other parameters than the current ones."""
    current = {key: value.detach().clone() for key, value in step.session.parameters.items()}
    with torch.no_grad():
        for value in step.session.parameters.values():
            value.mul_(0.9)
    function()
    with torch.no_grad():
        for key, value in step.session.parameters.items():
            value.add_(current[key] - value)


def with_nan(step, function):
    function()
    step.results.fill_(float("nan"))


WRONG = {
    "latents": with_values_of_the_capture("latents"),
    "timesteps": with_values_of_the_capture("timesteps"),
    "target": with_values_of_the_capture("target"),
    "weights": with_values_of_the_capture("weights"),
    "learning rate": without_learning_rate,
    "parameters": with_initial_parameters,
    "nothing": lambda step, function: None,
    "nan": with_nan,
}


@pytest.fixture(scope="module")
def one_step(settings, tmp_path_factory):
    """A run of one step, and its weights without a graph."""
    config = settings(**QUICK, method="lora", steps=1)
    return config, weights(train(config, tmp_path_factory.mktemp("eager")))


@pytest.mark.parametrize("around", WRONG.values(), ids=WRONG)
def test_a_replay_with_other_results_is_not_used(one_step, tmp_path, use_graph, around):
    config, eager = one_step
    events, graph = [], use_graph(around=around)
    assert torch.equal(weights(train(config, tmp_path, [events.append])), eager)
    (notice,) = notices(events)
    assert "steps run without a CUDA graph: a replay differs from the eager step in the" in notice
    assert graph.replays == 1


def test_a_capture_that_fails_is_not_used(settings, tmp_path, monkeypatch):
    def fail(function):
        function()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    config, events = settings(**QUICK, gradient_accumulation_steps=2), []
    eager = weights(train(config, tmp_path / "eager"))
    monkeypatch.setitem(step_graph.CAPTURES, "cpu", fail)
    assert torch.equal(weights(train(config, tmp_path / "graph", [events.append])), eager)
    reason = "the capture failed with RuntimeError: operation not permitted when stream is capturing"
    assert notices(events) == [f"steps run without a CUDA graph: {reason}"]


def test_out_of_memory_drops_the_graph_first(settings, tmp_path, use_graph):
    """The steps before it are in the log, though their losses had not been read."""
    config, events = settings(**QUICK, log_every=10, checkpoint_every=10), []
    eager = weights(train(config, tmp_path / "eager"))

    def full_device(step, function):
        if step.session.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        function()

    use_graph(around=full_device)
    assert torch.equal(weights(train(config, tmp_path / "graph", [events.append])), eager)
    assert notices(events) == ["out of memory at step 3; continuing from the previous step with cuda graph off"]
    assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3, 4]


def test_out_of_memory_in_the_check_reduces_memory(settings, tmp_path, use_graph):
    """The check takes the eager step first."""
    use_graph()
    pipe, events, passes = tiny_pipe(), [], []

    def full_device(*_):
        passes.append(1)
        if len(passes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    pipe.unet.register_forward_pre_hook(full_device)
    train(settings(**QUICK), tmp_path / "a", [events.append], pipe=pipe)
    (notice,) = notices(events)
    assert "out of memory at step 1; continuing from the previous step with batch size 1" in notice


@pytest.mark.parametrize(
    ("changes", "processes", "reason"),
    [
        ({"mixed_precision": "fp16"}, 1, "the loss scaler of --mixed-precision fp16"),
        ({"optimizer": "adamw8bit"}, 1, "--optimizer adamw8bit keeps numbers on the host"),
        ({"optimizer": "prodigy"}, 1, "--optimizer prodigy keeps numbers on the host"),
        ({}, 2, "several processes"),
    ],
)
def test_steps_that_wait_for_the_device_are_not_captured(settings, changes, processes, reason):
    assert obstacle(settings(**changes), processes).startswith(reason)
    assert not obstacle(settings(mixed_precision="bf16"))
    assert uses_graph(settings(), "cuda") and not uses_graph(settings(), "cpu")
    assert not uses_graph(settings(cuda_graph="off"), "cuda")


def test_the_prediction_counts_the_graph_while_samples_are_generated(settings):
    auto, off = (predict_footprint(settings(cuda_graph=value), "cuda").phases for value in ("auto", "off"))
    assert auto["samples"] > off["samples"] and auto["train"] == off["train"]


def test_a_memory_limit_turns_the_graph_off(settings):
    """It changes neither the numbers nor the memory of a step, and costs less time than other savings."""
    changes = {"resolution": 256, "batch_size": 4, "sample_batch_size": 1, "prior_loss_weight": 0}
    auto, off = (predict_footprint(settings(**changes, cuda_graph=value), "cuda").peak for value in ("auto", "off"))
    limit = f"{(auto + off) / 2 / GIB:.2f}GB"
    chosen, _ = fit_to_limit(settings(**changes, memory_limit=limit), "cuda")
    assert chosen == settings(**changes, memory_limit=limit, cuda_graph="off")


def test_relative_error_of_tensors():
    ones = [torch.ones(4), torch.ones(4)]
    assert relative_error([torch.full((4,), 1.5), torch.ones(4)], ones) == pytest.approx(0.5)
    assert relative_error([torch.ones(4), torch.full((4,), 1e-9)], [torch.ones(4), torch.zeros(4)]) < 1e-8
    assert not relative_error([torch.full((4,), float("nan")), torch.ones(4)], ones) <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", registry.method_names())
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_cuda_graph_trains_as_eager_steps_do(settings, tmp_path, method, changes):
    losses = {"auto": [], "off": []}
    for value, events in losses.items():
        config = settings(**changes | {"method": method}, device="cuda", steps=8, sample_every=0, cuda_graph=value)
        train(config, tmp_path / value, [events.append])
    assert not notices(losses["auto"])
    auto, off = (torch.tensor([e.loss for e in events if isinstance(e, Step)]) for events in losses.values())
    assert torch.allclose(auto, off, rtol=1e-3)
