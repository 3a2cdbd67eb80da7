"""The training step as a CUDA graph: captured once, checked against the eager step, then replayed for every step.

Photos of several buckets need a graph each. The graphs share their memory, since only one runs at a time.

A replay launches all kernels of forward and backward pass, clipping and optimiser at once; the eager step launches each
of them from Python. See https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hra_diffusion.errors import first_line
from hra_diffusion.models import families
from training.batch import bucket_of_step, samples_per_bucket
from training.config import TrainConfig
from training.objective import seeded_generator
from training.runs.events import Notice
from training.session.optimizer import current_learning_rate
from training.session.state import Session
from training.step import TrainingStep

WARM_UP_CALLS = 3
"""Calls before the capture, in which libraries allocate their workspaces."""
MAX_ERROR, MAX_ERROR_16_BITS = 1e-3, 2e-2
"""Relative error up to which losses and gradients of eager step and replay count as equal, by the precision."""
MAX_UPDATE_ERROR = 0.25
"""The same for the optimiser's update: AdamW's first step divides each gradient by itself, noise included."""
PERTURBATION = 0.1
"""Size of the random offsets of the parameters during the check, relative to their mean."""

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Records the work of a function on the device, and returns a function that repeats it on the same memory."""


def capture_cuda_graph(function: Callable[[], None]) -> Callable[[], None]:
    """Capture the CUDA kernels of a function, after a few calls, on a stream of their own."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):  # after a capture that fails, torch.cuda.graph does not leave its stream
            for _ in range(WARM_UP_CALLS):
                function()
            with torch.cuda.graph(graph, _memory_pool(), stream):
                function()
    finally:
        torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


@functools.cache
def _memory_pool() -> Any:
    return torch.cuda.graph_pool_handle()


CAPTURES: dict[str, Capture] = {"cuda": capture_cuda_graph}
"""How a step is captured, by the type of the device. On other devices steps run eagerly."""


def uses_graph(config: TrainConfig, device: str) -> bool:
    """Return whether a run on this type of device captures its step, unless the check finds a difference."""
    return device in CAPTURES and config.cuda_graph == "auto" and not obstacle(config)


def obstacle(config: TrainConfig, processes: int = 1) -> str:
    """Return why the step of a run can't be captured, or ""."""
    if config.mixed_precision == "fp16":
        return "the loss scaler of --mixed-precision fp16 reads the gradients in every step"
    if config.optimizer != "adamw":
        return f"--optimizer {config.optimizer} keeps numbers on the host"
    return "several processes exchange gradients" if processes > 1 else ""


def capture_step(step: TrainingStep) -> None:
    """Capture the step of each bucket in ``session.graphs`` if a replay gives the eager step's results.

    If the device can't capture, or for any bucket the results differ, steps run eagerly, with a notice in the second
    case. The state of training is the same afterwards.
    """
    session = step.session
    capture = CAPTURES.get(session.accelerator.device.type)
    if capture is None or session.config.cuda_graph == "off":
        return
    reason = obstacle(session.config, session.accelerator.num_processes)
    for pair in () if reason else two_steps_per_bucket(session):
        reason = reason or _capture_and_check(step, capture, *pair)
    if reason:
        session.graphs = {}
        session.timer.emit(Notice(f"steps run without a CUDA graph: {reason}"))


def two_steps_per_bucket(session: Session) -> list[tuple[int, int]]:
    """Return the next two steps of each bucket."""
    counts = samples_per_bucket(session)
    steps: dict[int, list[int]] = {bucket: [] for bucket in range(len(counts))}
    step = session.step
    while any(len(found) < 2 for found in steps.values()):
        steps[bucket_of_step(counts, step, session.config.seed)[0]].append(step)
        step += 1
    return [(found[0], found[1]) for found in steps.values()]


def _capture_and_check(step: TrainingStep, capture: Capture, first: int, second: int) -> str:
    """Add the graph of a bucket and return "", or return why its results can't be used.

    The graph is captured with another batch, learning rate and parameters than it is checked with, so that a value that
    it does not read anew in every replay shows as a difference: ``first`` and ``second`` are steps of the bucket.
    """
    session, saved = step.session, TrainingState(step.session)
    try:
        expected = _perturbed_results(step, step.compute, first)
        saved.restore()
        step.load(second, learning_rate=0.0)
        try:
            graph = session.graphs[step.shape] = capture(step.compute)
        except Exception as error:  # the libraries involved raise errors of many types
            return f"the capture failed with {type(error).__name__}: {first_line(error)}"
        saved.restore()
        return expected.difference(_perturbed_results(step, graph, first), _max_error(session))
    finally:
        saved.restore()


def _perturbed_results(step: TrainingStep, compute: Callable[[], None], number: int) -> "StepResults":
    """Compute step ``number`` at parameters with random offsets, where no gradient vanishes by initialisation."""
    session = step.session
    parameters = list(session.parameters.values())
    generator = seeded_generator(session.config.seed, "graph check")
    with torch.no_grad():
        for parameter in parameters:
            offset = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(PERTURBATION * (parameter.abs().mean() + PERTURBATION) * offset)
    before = [parameter.detach().clone() for parameter in parameters]
    step.load(number, current_learning_rate(session))
    compute()
    gradients = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    updates = torch._foreach_sub([parameter.detach() for parameter in parameters], before)
    return StepResults(step.results.clone(), gradients, list(updates))


@dataclass(frozen=True)
class StepResults:
    """What a step has computed: losses and gradient norm, gradients, and the changes of the parameters."""

    results: Tensor
    gradients: list[Tensor]
    updates: list[Tensor]

    def difference(self, other: "StepResults", max_error: float) -> str:
        """Return what differs by more than rounding, or ""."""
        losses = float(((other.results - self.results) / self.results).abs().max())
        errors = {
            "the losses": (losses, max_error),
            "the gradients": (relative_error(other.gradients, self.gradients), max_error),
            "the parameters": (relative_error(other.updates, self.updates), MAX_UPDATE_ERROR),
        }
        different = [f"{what} by {error:.1e}" for what, (error, limit) in errors.items() if not error <= limit]
        return f"a replay differs from the eager step in {', '.join(different)}" if different else ""


def relative_error(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest ``‖value − expected‖ / ‖expected‖`` of the tensors.

    A norm below the root mean square of all norms counts as that: small tensors have the rounding errors of large ones.
    """
    norms = torch.stack(torch._foreach_norm(list(expected)))
    errors = torch.stack(torch._foreach_norm(torch._foreach_sub(list(values), list(expected))))
    return float((errors / norms.clamp(min=float(norms.square().mean().sqrt()))).max())


def _max_error(session: Session) -> float:
    full = families.denoiser(session.pipe).dtype == torch.float32 and session.config.mixed_precision == "no"
    return MAX_ERROR if full else MAX_ERROR_16_BITS


class TrainingState:
    """A copy of the parameters and the optimiser's state."""

    def __init__(self, session: Session):
        self.session = session
        self.parameters = {parameter: parameter.detach().clone() for parameter in session.parameters.values()}
        self.moments = {
            parameter: {name: value.clone() for name, value in session.optimizer.state.get(parameter, {}).items()}
            for parameter in self.parameters
        }

    @torch.no_grad()
    def restore(self) -> None:
        """Write the copies back into the same tensors. State that the optimiser has created since becomes 0."""
        for parameter, value in self.parameters.items():
            parameter.copy_(value)
            for name, moment in self.session.optimizer.state.get(parameter, {}).items():
                moment.copy_(self.moments[parameter].get(name, torch.zeros_like(moment)))
