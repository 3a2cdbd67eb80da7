"""What a run says while it goes: typed events. The bar, the log file and any page are listeners."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hra_diffusion.files import append_line, ignore_broken_pipe


@dataclass(frozen=True)
class Phase:
    """A phase of the run begins: "load base", "read photos", "class images", "cache", "train", "samples", "scores"."""

    name: str


@dataclass(frozen=True)
class Notice:
    """Something the person should know that stops nothing."""

    message: str


@dataclass(frozen=True)
class Plan:
    """What the run is going to take: predicted bytes at its peak on ``device``, the phase that holds them, and its
    seconds where they were measured before (else None). ``phases``: predicted bytes by phase."""

    memory: int
    phase: str
    device: str
    seconds: float | None
    phases: dict[str, int]


@dataclass(frozen=True)
class Captions:
    """The caption each photo is trained with, by the photo's path; ``added``: those whose trigger was added."""

    captions: dict[str, str]
    added: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """An optimiser step is done: ``step`` of ``total``; ``seconds`` is this step's time."""

    step: int
    total: int
    loss: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Sample:
    """Sample pictures of ``step`` lie in the run's folder."""

    step: int
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """Mean figures of a round of sample pictures: cosines by a CLIP model to the photos and to the prompts."""

    step: int
    subject: float
    prompt: float


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of ``step`` is saved; ``adapter`` can be used as it is."""

    step: int
    adapter: str


@dataclass(frozen=True)
class Stopped:
    """The run was asked to stop after ``step``; resume goes on from there."""

    step: int


@dataclass(frozen=True)
class Failed:
    """The run broke: why, and what to do."""

    reason: str


@dataclass(frozen=True)
class Finished:
    """The adapter is ready. ``phases``: seconds by phase."""

    adapter: str
    steps: int
    seconds: float
    phases: dict[str, float]


Event = Phase | Plan | Captions | Notice | Step | Sample | Scored | Checkpoint | Stopped | Failed | Finished
Listener = Callable[[Event], None]


def as_json(event: Event) -> str:
    """One line of JSON: the event's kind, the time (Unix seconds), its fields."""
    return json.dumps(
        {"event": type(event).__name__.lower(), "time": round(time.time(), 3), **dataclasses.asdict(event)},
        ensure_ascii=False,
    )


def plan_summary(plan: Plan) -> str:
    """A plan as a line for a person."""
    minutes = f", about {max(1, round(plan.seconds / 60))} min" if plan.seconds is not None else ""
    return f"about {plan.memory / 2**30:.1f} GB of memory on {plan.device}, most in {plan.phase!r} (predicted){minutes}"


def caption_lines(event: Captions) -> list[str]:
    """The captions as lines for a person: each caption once, with its photos."""
    photos: dict[str, list[str]] = {}
    for path, caption in event.captions.items():
        photos.setdefault(caption, []).append(Path(path).name)
    lines = [f'caption of {", ".join(names)}: "{caption}"' for caption, names in photos.items()]
    if len(lines) == 1:
        lines = [f'caption of every photo: "{next(iter(photos))}"']
    if event.added:
        lines.append(f"the trigger was added to {len(event.added)} of {len(event.captions)} captions, which lacked it")
    return lines


class LogFile:
    """Appends events to a file, one line of JSON each."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, event: Event) -> None:
        append_line(self.path, as_json(event))


class ProgressBar:
    """Progress on standard error: the phase, then a bar of steps with loss, speed and time left.

    Where standard error is no terminal the steps are a line per tenth: step, loss, seconds so far.
    """

    def __init__(self, name: str):
        self.name = name
        self.bar: Any = None
        self.seconds = 0.0

    def __call__(self, event: Event) -> None:
        match event:
            case Phase(name=phase):
                self._say(f"{self.name}: {phase} …")
            case Plan():
                self._say(f"{self.name}: {plan_summary(event)}")
            case Captions():
                hint = ["--no-add-trigger starts a run with the captions as they are"] if event.added else []
                for line in [*caption_lines(event), *hint]:
                    self._say(f"{self.name}: {line}")
            case Notice(message=message):
                self._say(f"{self.name}: note: {message}")
            case Step():
                self._advance(event)
            case Finished(adapter=adapter, seconds=seconds):
                self._say(f"{self.name}: ready in {seconds:.0f} s: {adapter}")
            case Stopped(step=step):
                self._say(f"{self.name}: stopped after step {step}; go on with --resume")

    def _advance(self, event: Step) -> None:
        self.seconds += event.seconds
        if not sys.stderr.isatty():
            if event.step * 10 // event.total > (event.step - 1) * 10 // event.total:
                self._say(f"{self.name}: step {event.step}/{event.total}, loss {event.loss:.4f}, {self.seconds:.0f} s")
            return
        if self.bar is None:
            self.bar = tqdm(total=event.total, initial=event.step - 1, unit="step", desc=self.name, file=sys.stderr)
        self.bar.update()
        self.bar.set_postfix_str(f"loss {event.loss:.4f}", refresh=False)

    def _say(self, line: str) -> None:
        if self.bar is not None and self.bar.n >= self.bar.total:
            self.bar.close()
            self.bar = None
        tqdm.write(line, file=sys.stderr)


def print_json(event: Event) -> None:
    """Listener of the ``--json`` mode: one line of JSON an event on standard output, as long as someone reads it."""
    with ignore_broken_pipe():
        sys.stdout.write(as_json(event) + "\n")
        sys.stdout.flush()
