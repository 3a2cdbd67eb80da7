"""Training loop, shared by all models of toybox.

The random numbers of a step depend on its index alone, so an interrupted and resumed training gives the same bits (with
a budget in steps).
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hra_diffusion.models.devices import computes_bfloat16
from toybox.checkpoints import Progress, load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

SAVE_SECONDS = 240
"""Seconds between checkpoints."""
LOG_STEPS = 50
"""Steps between log lines and checks that the loss is finite."""


@dataclass(frozen=True)
class Budget:
    """Length of a training: until ``minutes`` or ``steps`` are reached, whichever comes first."""

    minutes: float = float("inf")
    steps: float = float("inf")

    def used(self, progress: Progress) -> float:
        """Return the fraction of the budget that is used, from 0 to 1."""
        return min(1.0, max(progress.seconds / (60 * self.minutes), progress.step / self.steps))


def learning_rate_at(peak: float, step: int, used: float, warm_up: int = 100) -> float:
    """Linear warm-up to ``peak``, then cosine decay to 0 at the end of the budget."""
    return peak * min(1, (step + 1) / warm_up) * (0.5 + 0.5 * cos(pi * used))


def autocast(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 if the device computes in it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_bfloat16(device.type))


@dataclass(frozen=True)
class Training:
    """A training: ``modules`` are saved in the checkpoint, ``parameters`` are optimised."""

    name: str
    modules: dict[str, nn.Module]
    parameters: list[nn.Parameter]
    checkpoint: Path
    learning_rate: float
    batch: int

    def run(
        self, budget: Budget, loss_fn: Callable[[int, float], Tensor], after_step: Callable[[int], None] | None = None
    ) -> Progress:
        """Train until the end of the budget, from the checkpoint if there is one, saving every SAVE_SECONDS.

        ``loss_fn(step, used)`` returns the loss of a step's batch, given the used fraction of the budget;
        ``after_step(step)`` is called after the optimiser. Raises ArithmeticError if the loss isn't finite; the last
        checkpoint is kept.
        """
        # as in training.session.devices: the backward pass of cuDNN attention yields NaN on some GPUs
        torch.backends.cuda.enable_cudnn_sdp(False)
        optimiser = torch.optim.AdamW(self.parameters, betas=(0.9, 0.98), weight_decay=1e-4, fused=True)
        progress = load_checkpoint(self.checkpoint, self.modules, optimiser) if self.checkpoint.exists() else Progress()
        saved = progress.seconds
        while (used := budget.used(progress)) < 1:
            started = time.monotonic()
            optimiser.param_groups[0]["lr"] = learning_rate_at(self.learning_rate, progress.step, used)
            loss = self._step(optimiser, loss_fn(progress.step, used))
            progress.step += 1
            if after_step is not None:
                after_step(progress.step)
            progress.images += self.batch
            progress.seconds += time.monotonic() - started
            if progress.step % LOG_STEPS == 0:
                self._log(progress, loss)
            if progress.seconds - saved > SAVE_SECONDS or budget.used(progress) == 1:
                self._require_finite(progress, loss)
                save_checkpoint(self.checkpoint, self.modules, optimiser, progress)
                saved = progress.seconds
        return progress

    def _step(self, optimiser: Optimizer, loss: Tensor) -> Tensor:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return loss.detach()

    def _require_finite(self, progress: Progress, loss: Tensor) -> None:
        if not loss.isfinite():
            raise ArithmeticError(
                f"{self.name}: the loss is {loss.item()} at step {progress.step}; "
                f"{self.checkpoint} was not changed: try a lower --rate than {self.learning_rate:g}"
            )

    def _log(self, progress: Progress, loss: Tensor) -> None:
        self._require_finite(progress, loss)
        pace = progress.images / progress.seconds
        logger.info("%s: step %d, %.0f s, %.1f/s, loss %.4f", self.name, progress.step, progress.seconds, pace, loss)
