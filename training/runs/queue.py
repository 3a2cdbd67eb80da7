"""Queue of training runs. The runs of one output folder train one at a time, in processes that outlive the page.

All state is in files: ``{output}/.queue/waiting.json`` lists the waiting runs in order; each is a folder with its
configuration. A dispatcher process (see ``dispatch``) holds ``worker.lock``, trains the first waiting run in a separate
process, and ends when none is left. Any number of pages and command lines can read and change the queue.
"""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from hra_diffusion import trash
from hra_diffusion.errors import UserError
from hra_diffusion.files import make_folder, read_json, remove, write_text
from hra_diffusion.names import validated_name
from training import config as configs
from training.config import TrainConfig
from training.runs.locks import is_held
from training.runs.run_folder import RUN_FILES, Run, RunError

Status = Literal["waiting", "running", "stopped", "failed", "died", "finished"]
OVER = ("stopped", "failed", "died")
"""Statuses of a run that ended early and can be resumed."""
STOPPED = 130
"""Exit code of a process that was asked to stop; the command line uses the same."""
DETACHED = {"start_new_session": True, "creationflags": getattr(subprocess, "CREATE_NO_WINDOW", 0)}
"""Popen options: Ctrl-C does not reach the process, and closing the terminal does not end it."""


@dataclass(frozen=True)
class Job:
    """A run with its status and progress. ``place``: number of runs before it in the queue, if it is waiting."""

    run: Run
    status: Status
    step: int
    steps: int
    reason: str = ""
    place: int | None = None


@dataclass(frozen=True)
class Queue:
    """The runs of one output folder."""

    output: Path

    def add(self, config: TrainConfig) -> Run:
        """Prepare a run and append it to the queue. Raises RunError if its name is taken."""
        run = Run(self.output / config.name)
        with self.changing() as waiting:
            if run.folder.exists():
                raise RunError(f"a run called {config.name!r} exists already; choose another name")
            configs.write(config, run.folder / "config.yaml")
            run.write_state("waiting", 0, config.steps)
            waiting.append(config.name)
        return run

    def resume(self, name: str) -> None:
        """Append a stopped, failed or dead run to the queue; it continues from its last checkpoint."""
        with self.changing() as waiting:
            job = self.job(name)
            if job.status not in OVER:
                raise RunError(f"{name!r} is {job.status}: there is nothing to resume")
            job.run.write_state("waiting", job.step, job.steps)
            waiting.append(name)

    def waiting(self) -> list[str]:
        """Names of the waiting runs, the next one first."""
        if not self._list.exists():
            return []
        names = read_json(self._list)
        return names if isinstance(names, list) else self._waiting_by_state()

    def _waiting_by_state(self) -> list[str]:
        """Return the runs with status "waiting", oldest first, in place of a damaged list."""
        current = (self.last_started() or {}).get("name")
        states = sorted(self.output.glob("[!.]*/state.json"), key=lambda path: path.stat().st_mtime)
        runs = [Run(path.parent) for path in states]
        return [run.name for run in runs if run.state["status"] == "waiting" and run.name != current]

    def move(self, name: str, place: int) -> None:
        """Move a waiting run to another place (0 is next)."""
        with self.changing() as waiting:
            _require(name, waiting)
            waiting.remove(name)
            waiting.insert(max(0, place), name)

    def cancel(self, name: str) -> None:
        """Remove a waiting run from the queue; its checkpoints stay."""
        with self.changing() as waiting:
            _require(name, waiting)
            waiting.remove(name)
            run = Run(self.output / name)
            run.write_state("stopped", run.state["step"], run.state["steps"])

    def discard(self, name: str) -> None:
        """Move a run that ended early, with its checkpoints, to the bin. Raises RunError for any other status."""
        with self.changing():  # no one can resume it meanwhile
            job = self.job(name)
            if job.status not in OVER:
                raise RunError(f"{name!r} is {job.status}; only a stopped, failed or dead run can be deleted here")
            trash.move_to_trash(job.run.folder, self.output)

    def stop(self, name: str) -> None:
        """Ask a running run to finish its step, save and end. Raises RunError if this queue does not run it."""
        current = self.current()
        if current is None or current["name"] != name or not current["pid"]:
            raise RunError(f"{name!r} is not running in this queue; stop a run of the command line with Ctrl-C")
        write_text(self.stop_request, name)

    def take_stop(self, name: str) -> bool:
        """Return whether ``stop`` was called for this run since the last call."""
        try:
            asked = self.stop_request.read_text(encoding="utf-8") == name
            if asked:
                remove(self.stop_request)
        except OSError:
            return False
        return asked

    def job(self, name: str) -> Job:
        """Return a run with its status: "died" if it is recorded as running or waiting and no process trains it."""
        run = Run(self.output / validated_name(name))
        if not any((run.folder / file).is_file() for file in RUN_FILES):
            raise RunError(f"there is no run called {name!r} in {self.output}")
        state = run.state
        status, waiting = state["status"], self.waiting()
        if status == "waiting" and name in waiting:
            return Job(run, status, state["step"], state["steps"], place=waiting.index(name))
        if status in ("running", "waiting"):
            status = "running" if self._alive(run) else _ended(run)
        return Job(run, status, state["step"], state["steps"], state.get("reason", ""))

    def jobs(self) -> list[Job]:
        """Return all runs: the running one, the waiting ones in order, then the others, newest first."""
        found = []
        for folder in {path.parent for file in RUN_FILES for path in self.output.glob(f"[!.]*/{file}")}:
            with contextlib.suppress(UserError, OSError):  # another program's folder, or a run being deleted
                if not (folder / "state.json").exists():
                    configs.read_run(folder / "config.yaml")
                changed = max(path.stat().st_mtime for file in RUN_FILES if (path := folder / file).exists())
                found.append((self.job(folder.name), changed))
        rank = {"running": 0, "waiting": 1}
        found.sort(key=lambda pair: (rank.get(pair[0].status, 2), pair[0].place or 0, -pair[1]))
        return [job for job, _ in found]

    def start(self) -> None:
        """Start a dispatcher if a run is waiting and no dispatcher is running. Returns at once."""
        if not self.waiting() or is_held(self.dispatcher_lock):
            return
        with (self.folder / "worker.log").open("ab") as log:
            dispatcher = subprocess.Popen(
                [sys.executable, "-m", "training.runs.dispatch", str(self.output.resolve())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **DETACHED,
            )
        threading.Thread(target=dispatcher.wait, daemon=True).start()  # reap the process when it ends

    def busy(self) -> Run | None:
        """Return the run that is training, from this queue or a command line, or None."""
        return next((job.run for job in self.jobs() if job.status == "running"), None)

    def current(self) -> dict[str, Any] | None:
        """Return the dispatcher's current run as {"name", "pid"}, or None without a dispatcher."""
        return self.last_started() if is_held(self.dispatcher_lock) else None

    def last_started(self) -> dict[str, Any] | None:
        """Return the run that a dispatcher started and has not recorded as ended, as {"name", "pid"}, or None."""
        last = read_json(self.folder / "current.json")
        return last if isinstance(last, dict) and {"name", "pid"} <= last.keys() else None

    def write_current(self, name: str, pid: int | None) -> None:
        """Record the dispatcher's current run. ``pid`` is None until its process exists."""
        write_text(self.folder / "current.json", json.dumps({"name": name, "pid": pid}))

    def clear_current(self) -> None:
        """Record that the dispatcher has no current run."""
        (self.folder / "current.json").unlink(missing_ok=True)

    @property
    def folder(self) -> Path:
        """The folder of the queue's files."""
        return self.output / ".queue"

    @property
    def dispatcher_lock(self) -> Path:
        """The lock file that a dispatcher holds."""
        return self.folder / "worker.lock"

    @property
    def stop_request(self) -> Path:
        """The file with the name of the run that is asked to stop."""
        return self.folder / "stop"

    @contextlib.contextmanager
    def changing(self) -> Iterator[list[str]]:
        """Within the block, lock the list of waiting names. It is written if the block raises no error."""
        make_folder(self.folder)
        with FileLock(self.folder / "waiting.lock"):
            waiting = self.waiting()
            before = list(waiting)
            yield waiting
            if waiting != before:
                write_text(self._list, json.dumps(waiting, ensure_ascii=False))

    def _alive(self, run: Run) -> bool:
        """Return whether a process trains the run or is about to."""
        current = self.current()
        return (current is not None and current["name"] == run.name) or is_held(run.folder / ".lock")

    @property
    def _list(self) -> Path:
        return self.folder / "waiting.json"


def _ended(run: Run) -> Status:
    """Return the status of a run without a process. It may have ended since its state was last read."""
    status = run.state["status"]
    return "died" if status in ("running", "waiting") else status


def _require(name: str, waiting: list[str]) -> None:
    if name not in waiting:
        raise RunError(f"{name!r} is not waiting in the queue")
