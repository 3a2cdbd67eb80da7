"""How a run stands, read from its folder: what a page or a command line shows while it trains, and after."""

import math
import statistics
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hra_diffusion.evaluation.clip import Score
from hra_diffusion.files import json_objects
from training.runs.run_folder import Run

RECENT = 20
"""Steps whose median time tells how fast a run is now."""
LOG_LINES = 12
PHASES = {
    "load base": "loading the base model",
    "read photos": "reading the photos",
    "class images": "drawing pictures of its class, so that the rest is not forgotten",
    "cache": "encoding the photos",
    "train": "learning",
    "samples": "drawing sample pictures",
    "scores": "comparing the sample pictures with the photos",
}
"""What the phases are called to a person."""


@dataclass
class Progress:
    """Everything a run has said so far. ``losses``, ``samples`` (file names) and ``scores`` go by step."""

    phase: str = ""
    since: float = 0.0
    losses: dict[int, float] = field(default_factory=dict)
    samples: dict[int, list[str]] = field(default_factory=dict)
    scores: dict[int, Score] = field(default_factory=dict)
    checkpoints: list[int] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    step: int = 0
    total: int = 0
    seconds: list[float] = field(default_factory=list)
    round_seconds: float = 0.0

    def update(self, event: dict[str, Any]) -> None:
        """Take one event (a line of the run's log) in."""
        self.log = [*self.log, event_line(event)][-LOG_LINES:]
        match event:
            case {"event": "phase", "name": name, "time": at}:
                self.phase, self.since = name, at
            case {"event": "step"}:
                self._advance(event)
            case {"event": "sample", "step": step, "pictures": pictures, "time": at}:
                self.samples[step] = [Path(picture).name for picture in pictures]
                self.round_seconds, self.phase, self.since = at - self.since, "train", at
            case {"event": "scored", "step": step, "subject": subject, "prompt": prompt}:
                self.scores[step] = Score(subject, prompt)
            case {"event": "checkpoint", "step": step}:
                self.checkpoints = [*(kept for kept in self.checkpoints if kept < step), step]
            case {"event": "notice", "message": message}:
                self.notices.append(message)

    def seconds_left(self, sample_every: int) -> float | None:
        """Seconds until the end at the present speed, sample pictures included; None before the first step."""
        if not self.seconds:
            return None
        steps = self.total - self.step
        rounds = (math.ceil(self.total / sample_every) - self.step // sample_every) if sample_every else min(steps, 1)
        return steps * statistics.median(self.seconds[-RECENT:]) + rounds * self.round_seconds

    def _advance(self, event: dict[str, Any]) -> None:
        self.step, self.total = event["step"], event["total"]
        while self.losses and next(reversed(self.losses)) >= self.step:  # a resumed run goes over them again
            self.losses.popitem()
        self.losses[self.step] = event["loss"]
        self.seconds = [*self.seconds[1 - RECENT :], event["seconds"]]


def event_line(event: dict[str, Any]) -> str:
    """One event as a line for a person."""
    clock = time.strftime("%H:%M:%S", time.localtime(event.get("time", 0)))
    match event:
        case {"event": "phase", "name": name}:
            text = PHASES.get(name, name)
        case {"event": "step", "step": step, "total": total, "loss": loss}:
            text = f"step {step} of {total}, loss {loss:.4f}"
        case {"event": "failed", "reason": reason}:
            text = f"failed: {reason}"
        case {"event": "notice", "message": message}:
            text = f"note: {message}"
        case {"event": "plan", "memory": memory}:
            text = f"about {memory / 2**30:.1f} GB of memory (predicted)"
        case {"event": "captions", "captions": captions, "added": added}:
            text = f"captions of {len(captions)} photos, the trigger added to {len(added)}"
        case {"event": "scored", "step": step, "subject": subject, "prompt": prompt}:
            text = f"samples of step {step}: likeness to the photos {subject:.2f}, to the prompts {prompt:.2f}"
        case {"event": kind, "step": step}:
            text = f"{kind} at step {step}"
        case _:
            text = str(event.get("event"))
    return f"{clock}  {text}"


@dataclass
class _Tail:
    """A log file read so far."""

    progress: Progress = field(default_factory=Progress)
    offset: int = 0
    identity: int = 0


_tails: dict[Path, _Tail] = {}
_reading = threading.Lock()


def read(run: Run) -> Progress:
    """How the run stands. Only what was added since the last call is read; a run begun anew is read anew."""
    log = run.folder / "events.jsonl"
    with _reading:
        try:
            status = log.stat()
        except OSError:
            return Progress()
        tail = _tails.get(log)
        if tail is None or tail.identity != status.st_ino or tail.offset > status.st_size:
            tail = _tails[log] = _Tail(identity=status.st_ino)
        with log.open("rb") as file:
            file.seek(tail.offset)
            for line in file:
                if not line.endswith(b"\n"):  # still being written
                    break
                tail.offset += len(line)
                for event in json_objects([line]):
                    tail.progress.update(event)
        return tail.progress


def smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average without its pull towards the start: what a noisy loss does on the whole."""
    average, found = 0.0, []
    for number, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        found.append(average / (1 - weight**number))
    return found


def duration(seconds: float) -> str:
    """Seconds for a person: "0:48", "12:05", "1:02:33"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def process_log(run: Run, lines: int = LOG_LINES) -> list[str]:
    """The last lines the run's process wrote: a traceback, where it ended by a fault."""
    try:
        text = (run.folder / "process.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return without_noise(text.splitlines())[-lines:]


def without_noise(lines: Iterable[str]) -> list[str]:
    """Lines worth reading: the libraries' own notes on what is not installed are not."""
    return [line for line in lines if line.strip() and not line.startswith("[transformers]")]
