"""Progress of a run, read from its event log: what the page shows while the run trains and afterwards."""

import math
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hra_diffusion import records
from hra_diffusion.evaluation.clip import Score
from training.runs.event_text import event_line
from training.runs.events import LoggedEvent
from training.runs.run_folder import Run
from training.runs.state import LOG

RECENT_STEPS = 20
"""Number of steps whose median time predicts the time left."""
LOG_LINES = 12
SILENCE_SECONDS = 600.0
"""A run that trains writes events more often than this. Only caching many photos or class images may take longer."""


@dataclass
class Progress:
    """State of a run according to its events so far.

    Attributes:
        phase: name of the current phase (see ``events.Phase``).
        phase_start: its start in Unix seconds.
        losses: loss by step.
        validation: validation loss by step.
        samples: file names of the sample images by step.
        scores: mean CLIP scores of the sample images by step.
        best: the step that was named as the best, and the reason; None until the end, also while a run goes on.
        checkpoints: steps with a checkpoint, in order.
        notices: messages for the user.
        log: the last ``LOG_LINES`` events as text.
        step: number of optimiser steps done.
        total: number of steps of the run.
        step_seconds: seconds of the last ``RECENT_STEPS`` steps.
        samples_seconds: seconds of the last round of sample images.
        last_event: time of the last event in Unix seconds.
    """

    phase: str = ""
    phase_start: float = 0.0
    losses: dict[int, float] = field(default_factory=dict)
    validation: dict[int, float] = field(default_factory=dict)
    samples: dict[int, list[str]] = field(default_factory=dict)
    scores: dict[int, Score] = field(default_factory=dict)
    best: tuple[int, str] | None = None
    checkpoints: list[int] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    step: int = 0
    total: int = 0
    step_seconds: list[float] = field(default_factory=list)
    samples_seconds: float = 0.0
    last_event: float = 0.0

    def update(self, event: dict[str, Any]) -> None:
        """Apply one event, as parsed from a line of the log."""
        self.log = [*self.log, event_line(event)][-LOG_LINES:]
        self.last_event = max(self.last_event, event.get("time", 0.0))
        match event:
            case {"event": "phase", "name": name, "time": time}:
                self.phase, self.phase_start = name, time
            case {"event": "step"}:
                self._advance(event)
            case {"event": "validated", "step": step, "loss": loss, "time": time}:
                self.validation = {earlier: value for earlier, value in self.validation.items() if earlier < step}
                self.validation[step] = loss
                self.phase, self.phase_start = "train", time
            case {"event": "best", "step": step, "reason": reason}:
                self.best = step, reason
            case {"event": "sample", "step": step, "pictures": paths, "time": time}:
                self.samples[step] = [Path(path).name for path in paths]
                self.samples_seconds, self.phase, self.phase_start = time - self.phase_start, "train", time
            case {"event": "scored", "step": step, "subject": subject, "prompt": prompt}:
                self.scores[step] = Score(subject, prompt)
            case {"event": "checkpoint", "step": step}:
                self.checkpoints = [*(earlier for earlier in self.checkpoints if earlier < step), step]
            case {"event": "notice", "message": message}:
                self.notices.append(message)

    def seconds_left(self, sample_every: int) -> float | None:
        """Return the predicted seconds until the end, sample images included, or None before the first step."""
        if not self.step_seconds:
            return None
        steps = self.total - self.step
        rounds = (math.ceil(self.total / sample_every) - self.step // sample_every) if sample_every else min(steps, 1)
        return steps * statistics.median(self.step_seconds) + rounds * self.samples_seconds

    def silence(self) -> float:
        """Return the seconds since the last event, once they are suspiciously many; otherwise 0."""
        expected = max(SILENCE_SECONDS, 20 * max(self.step_seconds, default=0.0))
        seconds = time.time() - self.last_event if self.last_event else 0.0
        return seconds if seconds > expected else 0.0

    def _advance(self, event: dict[str, Any]) -> None:
        self.step, self.total, self.best = event["step"], event["total"], None
        while self.losses and next(reversed(self.losses)) >= self.step:  # a resumed run repeats some steps
            self.losses.popitem()
        self.losses[self.step] = event["loss"]
        self.step_seconds = [*self.step_seconds[1 - RECENT_STEPS :], event["seconds"]]


@dataclass
class _LogReader:
    """A log file that has been read up to ``offset``. ``inode`` tells whether it was replaced."""

    inode: int
    offset: int = 0
    progress: Progress = field(default_factory=Progress)


_readers: dict[Path, _LogReader] = {}
_reading = threading.Lock()


def read(run: Run) -> Progress:
    """Return the progress of a run. Only lines added since the last call are read, unless the log was replaced."""
    log = run.folder / LOG
    with _reading:
        try:
            status, file = log.stat(), log.open("rb")
        except OSError:
            return Progress()
        reader = _readers.get(log)
        if reader is None or reader.inode != status.st_ino or reader.offset > status.st_size:
            reader = _readers[log] = _LogReader(status.st_ino)
        with file:
            file.seek(reader.offset)
            for line in file:
                if not line.endswith(b"\n"):  # still being written
                    break
                reader.offset += len(line)
                for event in records.parse_lines(log, [line], LoggedEvent):
                    reader.progress.update(event)
        return reader.progress


def smooth(values: Sequence[float], decay: float = 0.9) -> list[float]:
    """Return the exponential moving average of values, with the bias correction of Adam."""
    average, averages = 0.0, []
    for number, value in enumerate(values, start=1):
        average = decay * average + (1 - decay) * value
        averages.append(average / (1 - decay**number))
    return averages


def format_duration(seconds: float) -> str:
    """Format seconds as a clock: "0:48", "12:05", "1:02:33"."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def rough_duration(seconds: float) -> str:
    """Format predicted seconds, rounded as coarsely as they are known: "45 s", "12 min", "2.5 h"."""
    if seconds < 50:
        return f"{max(5, round(seconds / 5) * 5)} s"
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h"


def process_log(run: Run, count: int = LOG_LINES) -> list[str]:
    """Return the last lines that the run's process has written, such as a traceback, without notes of libraries."""
    try:
        lines = (run.folder / "process.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.strip() and not line.startswith("[transformers]")][-count:]
