"""Captured calls, with a graph that runs the captured function again in place of CUDA's."""

import gc
import warnings
import weakref

import pytest
import torch
from conftest import PIPES, distance, pipe_with_two_adapters
from torch.utils._pytree import tree_leaves

from hra_diffusion.errors import Note
from hra_diffusion.generation import captured
from hra_diffusion.generation.captured import CapturedCalls, capturable
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate_batch


class FakeGraphs:
    """Replays by calling the function again on the graph's buffers. ``error``: how much replays are off."""

    def __init__(self, error=0.0):
        self.error = error
        self.warmed = self.captured = self.replayed = 0

    def warm_up(self, run):
        self.warmed += 1
        return run()

    def capture(self, run):
        self.captured += 1
        output = run()

        def replay():
            self.replayed += 1
            for buffer, value in zip(tree_leaves(output), tree_leaves(run()), strict=True):
                buffer.copy_(value + self.error)

        return replay, output


def double(x, extra=None, scale=2):
    return (x * scale if extra is None else x * scale + extra["bias"],)


def no_notes():
    return warnings.catch_warnings(action="error", category=Note)


def test_a_call_is_captured_once_per_shape_constant_and_plan():
    graphs = FakeGraphs()
    calls = CapturedCalls(double, graphs)
    with no_notes():
        for number in range(3):
            for shape in ((2,), (3,)):
                x = torch.full(shape, float(number))
                assert torch.equal(calls("plan", x)[0], 2 * x)
                assert torch.equal(calls("plan", x, {"bias": x})[0], 3 * x)
                assert torch.equal(calls("plan", x, scale=5)[0], 5 * x)
                assert torch.equal(calls("other plan", x)[0], 2 * x)
    assert graphs.captured == graphs.warmed == 8
    assert graphs.replayed == 3 * 8, "the first call of a kind replays once, to check the graph"


def test_a_replay_reads_copies_of_the_arguments_and_returns_a_copy():
    calls, x = CapturedCalls(double, FakeGraphs()), torch.ones(2)
    first, second = calls("plan", x)[0], calls("plan", x)[0]
    x.add_(1)
    third = calls("plan", x)[0]
    assert torch.equal(first, torch.full((2,), 2.0)) and torch.equal(second, first)
    assert torch.equal(third, torch.full((2,), 4.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_whose_output_differs_is_not_used(dtype):
    graphs = FakeGraphs(error=0.1)
    calls, x = CapturedCalls(double, graphs), torch.ones(2, dtype=dtype)
    with pytest.warns(Note, match="without a CUDA graph.*differs by 0.05") as notes:
        outputs = [calls("plan", x)[0] for _ in range(3)] + [calls("plan", x[:1])[0]]
    assert all(torch.equal(output, 2 * torch.ones_like(output)) for output in outputs)
    assert graphs.captured == 1 and len([note for note in notes if note.category is Note]) == 1


def test_rounding_and_nan_do_not_count_as_a_difference():
    graphs = FakeGraphs(error=1e-6)
    calls = CapturedCalls(double, graphs)
    with no_notes():
        for _ in range(3):
            calls("plan", torch.tensor([1.0, float("nan")]))
    assert graphs.replayed == 3


def test_a_failed_capture_falls_back_with_one_note():
    class Failing(FakeGraphs):
        def capture(self, run):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    calls = CapturedCalls(double, Failing())
    with pytest.warns(Note, match="operation not permitted when stream is capturing$") as notes:
        assert [float(calls("plan", torch.ones(1))[0]) for _ in range(3)] == [2.0] * 3
    assert len([note for note in notes if note.category is Note]) == 1


def test_errors_of_the_function_itself_are_raised():
    def broken(x):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.warns(Note), pytest.raises(torch.OutOfMemoryError):
        CapturedCalls(broken, FakeGraphs())("plan", torch.ones(1))


def test_a_graph_keeps_the_tensors_alive_that_it_reads():
    """Otherwise their memory is reused, and a replay reads something else."""

    class Recording(FakeGraphs):
        """As a CUDA graph, it refers to memory, not to tensors."""

        def capture(self, run):
            output = run()
            return (lambda: None), output

    factors = {"a": torch.ones(2)}
    kept, temporary = weakref.ref(factors["a"]), []

    def function(x):
        y = x + factors["a"]
        temporary.append(weakref.ref(y))
        return y * 2

    calls = CapturedCalls(function, Recording())
    calls("plan", torch.ones(2))
    factors.clear()
    gc.collect()
    assert kept() is not None and not any(reference() is not None for reference in temporary)
    assert calls.release() and not calls.release()
    gc.collect()
    assert kept() is None


@pytest.fixture
def graphs(monkeypatch):
    """Let a UNet on the CPU be captured by a fake graph."""
    graphs = FakeGraphs()
    monkeypatch.setattr(captured, "capturable", lambda pipe: "forward" not in vars(pipe.unet))
    monkeypatch.setattr(captured, "CudaGraphs", lambda: graphs)
    return graphs


REQUESTS = [Request("a dog", seed, adapters) for adapters in ((), (("a", 1.0),), (("b", 0.5),)) for seed in range(3)]
STEPS = 4


def test_images_equal_those_without_a_graph_and_batches_share_it(graphs):
    """Nine images in batches of one: a graph for each of three plans, and all other calls replay."""
    pipe = pipe_with_two_adapters()
    eager = generate_batch(pipe, REQUESTS, Settings(STEPS), 1, cuda_graph="off")
    assert graphs.captured == 0
    with no_notes():
        images = generate_batch(pipe, REQUESTS, Settings(STEPS), 1)
    assert [distance(*pair) for pair in zip(images, eager, strict=True)] == [0.0] * 9
    assert (graphs.captured, graphs.replayed) == (3, 9 * STEPS)
    assert "forward" not in vars(pipe.unet)


@pytest.mark.parametrize("kind", PIPES)
def test_every_family_can_be_captured(kind, graphs):
    images, eager = (
        generate_batch(PIPES[kind](), REQUESTS[:2], Settings(STEPS), cuda_graph=mode) for mode in ("auto", "off")
    )
    assert [distance(*pair) for pair in zip(images, eager, strict=True)] == [0.0] * 2
    assert (graphs.captured, graphs.replayed) == (1, STEPS)


def test_a_callback_may_generate_with_other_adapters(graphs):
    pipe, inner = pipe_with_two_adapters(), []
    eager = generate_batch(pipe, REQUESTS[:4:3], Settings(STEPS), 1, cuda_graph="off")

    def on_step(step):
        if step.step == 2:
            inner.extend(generate_batch(pipe, REQUESTS[3:4], Settings(STEPS)))

    (outer,) = generate_batch(pipe, REQUESTS[:1], Settings(STEPS), on_step=on_step)
    assert [distance(*pair) for pair in zip([outer, *inner], eager, strict=True)] == [0.0] * 2
    assert graphs.captured == 1 and graphs.replayed == STEPS


def test_memory_of_the_graphs_is_freed_before_a_batch_shrinks(graphs):
    pipe, sizes = pipe_with_two_adapters(), []
    decoder = pipe.vae.decoder.forward

    def forward(latents, *args):
        sizes.append(len(latents))
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return decoder(latents, *args)

    pipe.vae.decoder.forward = forward
    generate_batch(pipe, REQUESTS[:4], Settings(STEPS), 2)
    assert sizes == [2, 2, 2] and graphs.replayed == STEPS


def test_what_can_not_be_captured(monkeypatch):
    class OnCuda:
        """A UNet that says it is on a CUDA device."""

        def __init__(self, unet):
            self.unet, self.device = unet, torch.device("cuda")

        def modules(self):
            return self.unet.modules()

        @property
        def __dict__(self):
            return vars(self.unet)

    def pipe_of(unet):
        return type("Pipe", (), {"unet": OnCuda(unet)})()

    def hooked(unet):
        unet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")

    def cast(unet):
        unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)

    def compiled(unet):
        unet.mid_block.compile(backend="eager")

    def patched(unet):
        unet.forward = unet.forward

    assert not capturable(pipe_with_two_adapters()), "on a CPU"
    assert capturable(pipe_of(pipe_with_two_adapters().unet))
    for change in (hooked, cast, compiled, patched):
        unet = pipe_with_two_adapters().unet
        change(unet)
        assert not capturable(pipe_of(unet)), change.__name__
