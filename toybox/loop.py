"""Training loop and checkpoints, shared by all models of toybox.

A checkpoint is one safetensors file: weights, optimiser state and progress. The random numbers of a step depend on its
index alone, so an interrupted and continued training gives the same bits (with a budget in steps).
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from hra_diffusion.files import atomic_path
from hra_diffusion.models.devices import computes_bfloat16

logger = logging.getLogger(__name__)

SAVE_SECONDS = 240
"""Seconds between checkpoints."""
LOG_STEPS = 50
"""Steps between log lines and checks that the loss is finite."""


@dataclass
class Progress:
    """Progress of a training over all its sessions: optimiser steps, images seen, seconds."""

    step: int = 0
    pictures: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Budget:
    """Length of a training: until ``minutes`` or ``steps`` are reached, whichever comes first."""

    minutes: float = float("inf")
    steps: float = float("inf")

    def spent(self, progress: Progress) -> float:
        """Fraction of the budget that is used, 0 to 1."""
        return min(1.0, max(progress.seconds / (60 * self.minutes), progress.step / self.steps))


def save_checkpoint(path: Path, modules: dict[str, nn.Module], optimiser: Optimizer, progress: Progress) -> None:
    """Write a checkpoint atomically."""
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{key}": value for key, value in state.items()}
    # safetensors needs contiguous tensors that share no memory (tied weights, channels-last)
    tensors = {key: value.detach().contiguous().clone() for key, value in tensors.items()}
    with atomic_path(path) as unfinished:
        save_file(tensors, unfinished, metadata={"progress": json.dumps(asdict(progress))})


def strip_checkpoint(path: Path, output: Path) -> None:
    """Copy a checkpoint without its optimiser state, for publication."""
    with safe_open(path, framework="pt") as file, atomic_path(output) as unfinished:
        weights = {key: file.get_tensor(key) for key in file.keys() if not key.startswith("optimiser/")}  # noqa: SIM118
        save_file(weights, unfinished, metadata=file.metadata())


def load_checkpoint(path: Path, modules: dict[str, nn.Module], optimiser: Optimizer | None = None) -> Progress:
    """Load a checkpoint into modules and, if given, an optimiser; return its progress."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    for name, module in modules.items():
        module.load_state_dict(_under(tensors, name))
    if optimiser is not None:
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, "optimiser").items():
            index, entry = key.split("/")
            state.setdefault(int(index), {})[entry] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return read_progress(path)


def read_progress(path: Path) -> Progress:
    """Return the progress of a checkpoint, or none at all if it doesn't exist."""
    if not path.exists():
        return Progress()
    with safe_open(path, framework="pt") as file:
        return Progress(**json.loads(file.metadata()["progress"]))


def _under(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def learning_rate(peak: float, step: int, spent: float, warm_up: int = 100) -> float:
    """Linear warm-up to ``peak``, then cosine decay to 0 at the end of the budget."""
    return peak * min(1, (step + 1) / warm_up) * (0.5 + 0.5 * cos(pi * spent))


def autocast(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 if the device computes in it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_bfloat16(device.type))


@dataclass(frozen=True)
class Training:
    """A training: ``modules`` are saved in the checkpoint, ``trained`` are the parameters to optimise."""

    name: str
    modules: dict[str, nn.Module]
    trained: list[nn.Parameter]
    checkpoint: Path
    peak_rate: float
    batch: int

    def run(
        self, budget: Budget, loss_of: Callable[[int, float], Tensor], after_step: Callable[[int], None] | None = None
    ) -> Progress:
        """Train until the end of the budget, from the checkpoint if there is one, saving every SAVE_SECONDS.

        ``loss_of(step, spent)`` returns the loss of a step's batch; ``after_step(step)`` is called after the optimiser.
        Raises ArithmeticError if the loss isn't finite; the last checkpoint is kept.
        """
        # as in training.session.devices: the backward pass of cuDNN attention yields NaN on some GPUs
        torch.backends.cuda.enable_cudnn_sdp(False)
        optimiser = torch.optim.AdamW(self.trained, betas=(0.9, 0.98), weight_decay=1e-4, fused=True)
        progress = load_checkpoint(self.checkpoint, self.modules, optimiser) if self.checkpoint.exists() else Progress()
        saved = progress.seconds
        while (spent := budget.spent(progress)) < 1:
            started = time.monotonic()
            optimiser.param_groups[0]["lr"] = learning_rate(self.peak_rate, progress.step, spent)
            loss = self._step(optimiser, loss_of(progress.step, spent))
            progress.step += 1
            if after_step is not None:
                after_step(progress.step)
            progress.pictures += self.batch
            progress.seconds += time.monotonic() - started
            if progress.step % LOG_STEPS == 0:
                self._log(progress, loss)
            if progress.seconds - saved > SAVE_SECONDS or budget.spent(progress) == 1:
                self._require_finite(progress, loss)
                save_checkpoint(self.checkpoint, self.modules, optimiser, progress)
                saved = progress.seconds
        return progress

    def _step(self, optimiser: Optimizer, loss: Tensor) -> Tensor:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return loss.detach()

    def _require_finite(self, progress: Progress, loss: Tensor) -> None:
        if not loss.isfinite():
            raise ArithmeticError(
                f"{self.name}: the loss is {loss.item()} at step {progress.step}; "
                f"{self.checkpoint} was not changed: try a lower --rate than {self.peak_rate:g}"
            )

    def _log(self, progress: Progress, loss: Tensor) -> None:
        self._require_finite(progress, loss)
        pace = progress.pictures / progress.seconds
        logger.info("%s: step %d, %.0f s, %.1f/s, loss %.4f", self.name, progress.step, progress.seconds, pace, loss)
