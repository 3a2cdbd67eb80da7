"""Losses and gradient norms, which stay on the device until several steps are read at once."""

import math
import time

import torch
from torch import Tensor

from training.runs.events import Step
from training.session.optimizer import found_learning_rate
from training.session.state import Session
from training.step import not_finite

GPU_INTERVAL = 10
"""Steps between two readings on a GPU, where reading waits for the device."""


class StepLog:
    """The results of the steps since the last reading. ``interval``: steps between two readings."""

    def __init__(self, session: Session):
        self.session = session
        device, micro_steps = session.accelerator.device, session.config.gradient_accumulation_steps
        self.interval = session.config.log_every or (1 if device.type == "cpu" else GPU_INTERVAL)
        self._rows = torch.zeros(self.interval, micro_steps + 1, device=device)
        self._steps: list[tuple[int, float]] = []
        self._start = 0.0

    def begin_step(self) -> None:
        """Start the clock, unless it has run since the last reading."""
        if not self._steps:
            self._start = time.perf_counter()

    def add(self, learning_rate: float, results: Tensor) -> None:
        """Keep the results of the step just taken (see ``TrainingStep``) without waiting for them."""
        self._rows[len(self._steps)] = results
        self._steps.append((self.session.step, learning_rate * found_learning_rate(self.session.optimizer)))

    def read(self) -> None:
        """Read all results in one transfer and emit an event for each step.

        Losses are means over the processes; the seconds of a step are the mean since the last reading. Raises
        TrainingError for the first loss or gradient that is not finite.
        """
        if not self._steps:
            return
        session, steps = self.session, self._steps
        rows = session.processes.average(session.step, self._rows[: len(steps)].cpu()).tolist()
        seconds = round((time.perf_counter() - self._start) / len(steps), 4)
        self._steps = []
        for (step, learning_rate), (*losses, norm) in zip(steps, rows, strict=True):
            for what, value in (*(("loss", loss) for loss in losses), ("gradient", norm)):
                if not math.isfinite(value):
                    raise not_finite(session, what, value, step)
            total = 0.0
            for loss in losses:
                total += loss / len(losses)
            event = Step(step, session.config.steps, round(total, 6), learning_rate, seconds, round(norm, 6))
            session.timer.emit(event)
