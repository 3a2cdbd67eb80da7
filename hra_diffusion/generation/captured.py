"""Calls of a function as captured CUDA graphs. Replaying one costs one launch in place of thousands of kernels."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from hra_diffusion.errors import Note, first_line
from hra_diffusion.models import families

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

CudaGraph = Literal["auto", "off"]
Run = Callable[[], Any]
Replay = Callable[[], Any]
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Relative difference between eager and replayed output that counts as rounding, by dtype."""
HALF_TOLERANCE = 2e-2
"""The same for float16 and bfloat16."""


class Capture(Protocol):
    """How to capture the operations of a function without arguments."""

    def warm_up(self, run: Run) -> Any:
        """Run eagerly before the capture; returns the output."""
        ...

    def capture(self, run: Run) -> tuple[Replay, Any]:
        """Capture a run: returns a function that replays its operations, and the output that a replay overwrites."""
        ...


class CudaGraphs:
    """Captures CUDA graphs, which share one memory pool: the output of each replay must be cloned before the next."""

    def __init__(self):
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, run: Run) -> Any:
        """Run on a side stream, as ``torch.cuda.graph`` requires before a capture."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            output = run()
        torch.cuda.current_stream().wait_stream(stream)
        return output

    def capture(self, run: Run) -> tuple[Replay, Any]:
        """Capture a run as a graph."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            output = run()
        return graph.replay, output


class CapturedCalls:
    """Calls of a function of tensors, captured once per plan, structure of the arguments, and shapes.

    The first call of a kind runs eagerly, captures a graph, and compares the output of a replay with the eager one. If
    the capture fails, or the outputs differ by more than rounding, a warning (Note) says so, and from then on every
    call runs eagerly. Tensors that the function reads besides its arguments must keep their values; graphs keep them
    alive.

    Args:
        function: takes and returns tensors, in any nesting that ``torch.utils._pytree`` knows, and None or numbers.
        capture: how to capture; by default as CUDA graphs.
    """

    def __init__(self, function: Callable[..., Any], capture: Capture | None = None):
        self.function = function
        self.capture = capture or CudaGraphs()
        self.graphs: dict[Hashable, _Graph] = {}
        self.eager = False
        """Whether every call runs eagerly."""

    def __call__(self, plan: Hashable, *args: Any, **kwargs: Any) -> Any:
        """Return ``function(*args, **kwargs)``. ``plan``: identifies everything else that the outcome depends on."""
        leaves, structure = tree_flatten((args, kwargs))
        key = plan, repr(structure), tuple(_kind(leaf) for leaf in leaves)
        if graph := self.graphs.get(key):
            return graph(leaves)
        if not self.eager:
            try:
                return self._first_output(key, leaves, structure)
            except RuntimeError as error:  # of CUDA, also if memory runs out
                problem = first_line(error)
            self.release()
            warnings.warn(f"the denoiser runs without a CUDA graph, which takes longer: {problem}", Note, stacklevel=2)
        return self.function(*args, **kwargs)

    def _first_output(self, key: Hashable, leaves: Sequence[Any], structure: Any) -> Any:
        """Run eagerly, and keep a graph for later calls. Raises RuntimeError if it can't be captured, or differs."""
        buffers = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        run = functools.partial(self._run, structure, buffers)
        expected = self.capture.warm_up(run)
        graph = _capture(self.capture, run, buffers)
        if difference := _difference(graph(leaves), expected):
            raise RuntimeError(f"its output differs by {difference:.1g} of its norm")
        self.graphs[key] = graph
        return expected

    def release(self) -> bool:
        """Free the graphs and their memory; returns whether there were any. Every later call runs eagerly."""
        captured = bool(self.graphs)
        self.graphs, self.eager = {}, True
        return captured

    def _run(self, structure: Any, leaves: Sequence[Any]) -> Any:
        args, kwargs = tree_unflatten(leaves, structure)
        return self.function(*args, **kwargs)


@dataclass(frozen=True)
class _Graph:
    """A captured call. ``buffers`` hold its arguments; ``read`` are all tensors that the captured operations read."""

    replay: Replay
    output: Any
    buffers: Sequence[Any]
    read: Sequence[Tensor]

    def __call__(self, leaves: Sequence[Any]) -> Any:
        for buffer, leaf in zip(self.buffers, leaves, strict=True):
            if isinstance(buffer, Tensor):
                buffer.copy_(leaf)
        self.replay()
        return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, self.output)


def _capture(capture: Capture, run: Run, buffers: Sequence[Any]) -> _Graph:
    read = _TensorsRead()

    def recorded() -> Any:
        with read:
            return run()

    replay, output = capture.capture(recorded)
    return _Graph(replay, output, buffers, list(read.tensors.values()))


class _TensorsRead(TorchDispatchMode):
    """Collects the tensors that operations read and that none of them has returned."""

    def __init__(self):
        super().__init__()
        self.tensors: dict[int, Tensor] = {}
        self.returned: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for address, tensor in _by_address((args, kwargs)):
            if address not in self.returned:
                self.tensors.setdefault(address, tensor)
        output = function(*args, **kwargs or {})
        self.returned |= {address for address, _ in _by_address(output) if address not in self.tensors}
        return output


def _by_address(tree: Any) -> list[tuple[int, Tensor]]:
    return [(leaf.untyped_storage().data_ptr(), leaf) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _kind(leaf: Any) -> Hashable:
    return (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


def _difference(output: Any, expected: Any) -> float:
    """Return the largest relative difference of two outputs, or 0 if it is rounding alone. NaN equals NaN."""
    largest = 0.0
    for a, b in zip(tree_leaves(output), tree_leaves(expected), strict=True):
        if isinstance(a, Tensor):
            a, b, tolerance = a.nan_to_num(), b.nan_to_num(), TOLERANCE.get(a.dtype, HALF_TOLERANCE)
            difference = float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12))
            largest = max(largest, difference if difference > tolerance else 0.0)
    return largest


def capturable(pipe: StableDiffusionPipeline) -> bool:
    """Whether the denoiser can be captured: on a CUDA device, neither compiled nor with hooks of an offload."""
    denoiser = families.denoiser(pipe)
    if denoiser.device.type != "cuda":
        return False
    modules = list(denoiser.modules())
    hooks = ("_hf_hook", "_diffusers_hook", "_orig_mod")
    altered = any(hasattr(module, name) for module in modules for name in hooks) or "forward" in vars(denoiser)
    compiled = any(module._compiled_call_impl is not None for module in modules)
    return not altered and not compiled


def captured_denoiser(pipe: StableDiffusionPipeline, cuda_graph: CudaGraph) -> CapturedCalls | None:
    """Return the calls of the pipeline's denoiser for ``denoising_with``; None if it is not captured."""
    return CapturedCalls(families.denoiser(pipe).forward) if cuda_graph == "auto" and capturable(pipe) else None


@contextlib.contextmanager
def denoising_with(calls: CapturedCalls | None, pipe: StableDiffusionPipeline, plan: Hashable) -> Iterator[None]:
    """Within the block, the pipeline's denoiser runs by these calls, or uncaptured. ``plan``: its active adapters.

    Blocks may nest, as when a callback generates: the outer calls, of another plan, do not apply to the inner block.
    """
    denoiser = families.denoiser(pipe)
    outer = vars(denoiser).get("forward")
    if calls:
        denoiser.forward = functools.partial(calls, plan)
    elif isinstance(getattr(outer, "func", None), CapturedCalls):
        del denoiser.forward
    try:
        yield
    finally:
        vars(denoiser).pop("forward", None)
        if outer:
            denoiser.forward = outer
