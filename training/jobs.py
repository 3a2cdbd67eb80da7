"""A queue of runs, one at a time per output folder, trained by processes that outlive whoever asked for them.

Everything lies in files: ``{output}/.queue/waiting.json`` names the runs to come in order, each prepared as a folder
with its configuration. A worker process holds ``worker.lock``, trains the first that waits in a process of its own, and
ends when none is left. Any number of pages and command lines may look on, close, crash and come back.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from hra_diffusion.errors import UserError
from hra_diffusion.files import make_folder, write_text
from training import config as configs
from training.config import TrainConfig
from training.runs import Run, RunError

Status = Literal["waiting", "running", "stopped", "failed", "died", "finished"]


@dataclass(frozen=True)
class Job:
    """A run as the queue sees it: where it is, how it stands, and how far it came."""

    run: Run
    status: Status
    step: int
    steps: int
    reason: str = ""


@dataclass(frozen=True)
class Queue:
    """The runs of one output folder."""

    output: Path

    def add(self, config: TrainConfig) -> Run:
        """Prepare a run and put it at the end. Raises RunError if its name is taken."""
        run = Run(self.output / config.name)
        with self._changing() as waiting:
            if run.folder.exists():
                raise RunError(f"there is a run called {config.name!r} already; take another name")
            configs.write(config, run.folder / "config.yaml")
            run.write_state("waiting", 0, config.steps)
            waiting.append(config.name)
        return run

    def resume(self, name: str) -> None:
        """Put a stopped, failed or dead run at the end of the queue again; it goes on from its last checkpoint."""
        job = self.job(name)
        if job.status in ("waiting", "running", "finished"):
            raise RunError(f"{name!r} is {job.status}: there is nothing to resume")
        with self._changing() as waiting:
            job.run.write_state("waiting", job.step, job.steps)
            waiting.append(name)

    def waiting(self) -> list[str]:
        """Names of the runs to come, the next one first."""
        try:
            return json.loads(self._list.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []

    def move(self, name: str, place: int) -> None:
        """Give a waiting run another place (0 is next)."""
        with self._changing() as waiting:
            _require(name, waiting)
            waiting.remove(name)
            waiting.insert(place, name)

    def cancel(self, name: str) -> None:
        """Take a waiting run out of the queue; what it learned before stays."""
        with self._changing() as waiting:
            _require(name, waiting)
            waiting.remove(name)
            run = Run(self.output / name)
            run.write_state("stopped", run.state["step"], run.state["steps"])

    def stop(self, name: str) -> None:
        """Ask a running run to finish its step, keep it, and end. Raises RunError if it is not running."""
        current = self._current()
        if current is None or current["name"] != name or self.job(name).status != "running":
            raise RunError(f"{name!r} is not running")
        os.kill(current["pid"], signal.SIGTERM)

    def job(self, name: str) -> Job:
        """One run's standing. A run that says it runs, while nobody holds it, has died."""
        run = Run(self.output / name)
        try:
            state = run.state
        except (FileNotFoundError, ValueError):
            raise RunError(f"there is no run called {name!r} in {self.output}") from None
        status = state["status"]
        if status == "running" and not self._alive(run):
            status = "died"
        return Job(run, status, state["step"], state["steps"], state.get("reason", ""))

    def jobs(self) -> list[Job]:
        """All runs of the folder, newest first."""
        states = sorted(self.output.glob("*/state.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [self.job(path.parent.name) for path in states]

    def start(self) -> None:
        """See to it that a worker is at work if a run waits. Returns at once."""
        if not self.waiting() or self._held(self._folder / "worker.lock"):
            return
        make_folder(self._folder)
        with (self._folder / "worker.log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "training.jobs", str(self.output.resolve())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def work(self, train: Callable[[str], "subprocess.Popen[bytes]"] | None = None) -> None:
        """Be the worker: train what waits, one run after another. Returns when nothing waits or another works."""
        make_folder(self._folder)
        with contextlib.suppress(Timeout), FileLock(self._folder / "worker.lock", timeout=0):
            while (name := self._next()) is not None:
                process = (train or self._train)(name)
                write_text(self._folder / "current.json", json.dumps({"name": name, "pid": process.pid}))
                code = process.wait()
                (self._folder / "current.json").unlink(missing_ok=True)
                self._close(name, code)

    def _train(self, name: str) -> "subprocess.Popen[bytes]":
        with (self.output / name / "process.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "training.jobs", str(self.output), name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _close(self, name: str, code: int) -> None:
        """Where a process ended without a word (killed, out of memory), say so in its run."""
        run = Run(self.output / name)
        if run.state["status"] in ("running", "waiting"):
            run.fail(_cause(code))

    def _next(self) -> str | None:
        with self._changing() as waiting:
            return waiting.pop(0) if waiting else None

    def _alive(self, run: Run) -> bool:
        """Whether somebody trains the run, or is about to."""
        current = self._current()
        return self._held(run.folder / ".lock") or (current is not None and current["name"] == run.name)

    def _current(self) -> dict[str, Any] | None:
        """The worker's run and the process that trains it, while there is a worker."""
        if not self._held(self._folder / "worker.lock"):
            return None
        try:
            return json.loads((self._folder / "current.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    @staticmethod
    def _held(lock: Path) -> bool:
        if not lock.exists():
            return False
        try:
            with FileLock(lock, timeout=0):
                return False
        except Timeout:
            return True

    @property
    def _folder(self) -> Path:
        return self.output / ".queue"

    @property
    def _list(self) -> Path:
        return self._folder / "waiting.json"

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[str]]:
        """The list of names to change; written when the block ends well."""
        make_folder(self._folder)
        with FileLock(self._folder / "waiting.lock"):
            waiting = self.waiting()
            yield waiting
            write_text(self._list, json.dumps(waiting, ensure_ascii=False))


def _require(name: str, waiting: list[str]) -> None:
    if name not in waiting:
        raise RunError(f"{name!r} does not wait in the queue")


def _cause(code: int) -> str:
    """Why a process ended that had no time to say so itself."""
    if code == -signal.SIGKILL:
        return "the process was killed, most likely for want of memory; try a smaller batch size or resolution"
    if code < 0:
        return f"the process was ended by signal {signal.Signals(-code).name}; resume to go on"
    return f"the process ended with code {code}; its last words are in process.log"


def main(arguments: list[str]) -> int:
    """``python -m training.jobs OUTPUT`` works the queue; with a NAME it trains that run. Returns the exit code."""
    output = Path(arguments[0])
    if len(arguments) == 1:
        Queue(output).work()
        return 0
    from training.loop import train

    run = Run(output / arguments[1])
    try:
        train(run.config, output, resume=True)
    except UserError as error:
        if run.state["status"] == "waiting":  # it never got so far as to say so itself
            run.fail(str(error))
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
