"""Listeners to a run's events: a log file, a progress bar, and JSON on standard output."""

import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hra_diffusion.files import append_line, ignore_broken_pipe
from training.runs.event_text import caption_lines, plan_line
from training.runs.events import Captions, Event, Finished, Notice, Phase, Plan, Step, Stopped, to_json


class LogFile:
    """Append events to a file, one JSON object per line."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, event: Event) -> None:
        append_line(self.path, to_json(event))


class ProgressBar:
    """Show progress on standard error: the phases, and a bar of the steps with loss, speed and time left.

    If standard error is not a terminal, a line is written after every tenth of the steps instead of the bar.
    """

    def __init__(self, name: str):
        self.name = name
        self.bar: Any = None
        self.seconds = 0.0

    def __call__(self, event: Event) -> None:
        match event:
            case Phase(name=phase):
                self._write(f"{phase} …")
            case Plan():
                self._write(plan_line(event))
            case Captions():
                hint = ["--no-add-trigger starts a run with the captions as they are"] if event.added else []
                for line in [*caption_lines(event), *hint]:
                    self._write(line)
            case Notice(message=message):
                self._write(f"note: {message}")
            case Step():
                self._advance(event)
            case Finished(adapter=adapter, seconds=seconds):
                self._write(f"ready in {seconds:.0f} s: {adapter}")
            case Stopped(step=step):
                self._write(f"stopped after step {step}; continue with --resume")

    def _advance(self, event: Step) -> None:
        self.seconds += event.seconds
        if not sys.stderr.isatty():
            if event.step * 10 // event.total > (event.step - 1) * 10 // event.total:
                self._write(f"step {event.step}/{event.total}, loss {event.loss:.4f}, {self.seconds:.0f} s")
            return
        if self.bar is None:
            self.bar = tqdm(total=event.total, initial=event.step - 1, unit="step", desc=self.name, file=sys.stderr)
        self.bar.update()
        self.bar.set_postfix_str(f"loss {event.loss:.4f}", refresh=False)

    def _write(self, text: str) -> None:
        if self.bar is not None and self.bar.n >= self.bar.total:
            self.bar.close()
            self.bar = None
        tqdm.write(f"{self.name}: {text}", file=sys.stderr)


def print_json(event: Event) -> None:
    """Print an event as one line of JSON. Nothing is printed once the reader has closed the pipe."""
    with ignore_broken_pipe():
        sys.stdout.write(to_json(event) + "\n")
        sys.stdout.flush()
