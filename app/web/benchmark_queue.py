"""Benchmarks of the page's visitors: one at a time, in folders that say how far they are.

visitors/{visitor}/benchmark/{number}/benchmark.json     the plan (see ``app.protocols.plan``)
visitors/{visitor}/benchmark/{number}/state.json         whether it waits, runs or is over
visitors/{visitor}/benchmark/{number}/cells/             see ``app.protocols.cells``
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from app.inference_session import Cancelled
from hra_diffusion import records
from hra_diffusion.errors import UserError
from hra_diffusion.files import write_text

STATE_FILE = "state.json"
ACTIVE = ("waiting", "running")
POLL_SECONDS = 1.0
"""How often a running benchmark looks whether another page has stopped it."""


class State(BaseModel):
    """Content of the file.

    Attributes:
        owner: of its runs (see ``Owner.owner``).
        place: orders the waiting ones; the Unix time at which it was queued.
        step: the cell in progress.
        notes: why it ended, and what failed.
    """

    model_config = ConfigDict(frozen=True)

    status: Literal["waiting", "running", "stopped", "failed", "finished"] = "waiting"
    owner: str = ""
    place: float = 0.0
    step: str = ""
    notes: tuple[str, ...] = ()


class BenchmarkQueue:
    """The benchmarks of an outputs folder. ``changed`` counts the changes, and ``wake`` tells that one may wait."""

    def __init__(self) -> None:
        self.changed = 0
        self.wake = threading.Event()
        self.wake.set()  # some may wait since the page was closed
        self._lock = threading.RLock()
        self._running: dict[Path, threading.Event] = {}

    def folders(self, visitor: Path) -> list[Path]:
        """Return the folders of a visitor's benchmarks, newest first."""
        return sorted((path.parent for path in visitor.glob(f"benchmark/[0-9]*/{STATE_FILE}")), reverse=True)

    def state(self, folder: Path) -> State:
        """Return the state of a benchmark."""
        return records.read(folder / STATE_FILE, State, State(status="failed", notes=("its state was damaged",)))

    def write(self, folder: Path, **changes: Any) -> None:
        """Change the state of a benchmark."""
        with self._lock:
            write_text(folder / STATE_FILE, self.state(folder).model_copy(update=changes).model_dump_json())
            self.changed += 1

    def add(self, folder: Path, owner: str) -> None:
        """Append a benchmark to the queue: its folder has a plan."""
        write_text(folder / STATE_FILE, State(owner=owner).model_dump_json())
        self.resume(folder)

    def resume(self, folder: Path) -> None:
        """Append a benchmark that is over to the queue; only the missing cells are run. Raises UserError for others."""
        with self._lock:
            if folder in self._running:
                raise UserError("this benchmark has not ended yet; try again in a moment")
            self.write(folder, status="waiting", place=time.time(), notes=())
        self.wake.set()

    def waiting(self, output: Path) -> list[Path]:
        """Return the folders of the benchmarks that wait, or ran when the page was closed, in order."""
        states = {path.parent: self.state(path.parent) for path in output.glob(f"visitors/*/benchmark/*/{STATE_FILE}")}
        found = [folder for folder, state in states.items() if state.status in ACTIVE and folder not in self._running]
        return sorted(found, key=lambda folder: states[folder].place)

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[threading.Event]:
        """Within the block, a benchmark runs; yields what ``stop`` sets, also that of another page within a second.

        Raises Cancelled if it was stopped before.
        """
        over = threading.Event()
        with self._lock:
            self._running[folder] = cancelled = threading.Event()
        try:
            self.begin(folder, "")
            threading.Thread(target=self._watch, args=(folder, cancelled, over), daemon=True).start()
            yield cancelled
        finally:
            over.set()
            with self._lock:
                del self._running[folder]
                self.changed += 1

    def _watch(self, folder: Path, cancelled: threading.Event, over: threading.Event) -> None:
        """Set ``cancelled`` when the benchmark is no longer active, until it is over."""
        while not over.wait(POLL_SECONDS):
            if self.state(folder).status not in ACTIVE:
                cancelled.set()

    def begin(self, folder: Path, step: str) -> None:
        """Note the cell that begins. Raises Cancelled if the benchmark was stopped."""
        with self._lock:
            if self.state(folder).status not in ACTIVE:
                raise Cancelled("stopped")
            self.write(folder, status="running", step=step)

    def is_running(self, folder: Path) -> bool:
        """Whether this page runs the benchmark, also one that is being stopped."""
        return folder in self._running

    def stop(self, folder: Path) -> None:
        """Stop a benchmark: the run in progress saves its state. Raises UserError if it is over."""
        with self._lock:
            if self.state(folder).status not in ACTIVE:
                raise UserError("this benchmark has ended already")
            self.write(folder, status="stopped", step="")
            if event := self._running.get(folder):
                event.set()
