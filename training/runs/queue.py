"""A queue of runs, one at a time per output folder, trained by processes that outlive whoever asked for them.

Everything lies in files: ``{output}/.queue/waiting.json`` names the runs to come in order, each prepared as a folder
with its configuration. A worker process holds ``worker.lock``, trains the first that waits in a process of its own, and
ends when none is left. Any number of pages and command lines may look on, close, crash and come back.
"""

import _thread
import contextlib
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from hra_diffusion import trash
from hra_diffusion.errors import UserError
from hra_diffusion.files import make_folder, read_json, remove, validated_name, write_text
from hra_diffusion.libraries import hide_bitsandbytes, hide_loading_bars
from training import config as configs
from training.config import TrainConfig
from training.runs.run_folder import FILES, LOCK_TIMEOUT, Run, RunError

Status = Literal["waiting", "running", "stopped", "failed", "died", "finished"]
OVER = ("stopped", "failed", "died")
"""Standings of a run that ended before its time: it can go on."""
STOPPED = 130
"""Exit code of a process that was asked to stop, as the command line's."""
KILLED = -getattr(signal, "SIGKILL", 9)
"""Exit code of a process that the system killed; Windows has no such signal."""
APART = {"start_new_session": True, "creationflags": getattr(subprocess, "CREATE_NO_WINDOW", 0)}
"""Popen options: Ctrl-C does not reach the process, and closing the terminal does not end it."""


@dataclass(frozen=True)
class Job:
    """A run as the queue sees it: where it is, how it stands, and how far it came."""

    run: Run
    status: Status
    step: int
    steps: int
    reason: str = ""
    place: int | None = None
    """How many wait before it, for one that waits."""


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
        with self._changing() as waiting:
            job = self.job(name)
            if job.status not in OVER:
                raise RunError(f"{name!r} is {job.status}: there is nothing to resume")
            job.run.write_state("waiting", job.step, job.steps)
            waiting.append(name)

    def waiting(self) -> list[str]:
        """Names of the runs to come, the next one first."""
        if not self._list.exists():
            return []
        names = read_json(self._list)
        return names if isinstance(names, list) else self._waiting_by_state()

    def _waiting_by_state(self) -> list[str]:
        """The runs that wait by their own state, the oldest first: the list in place of a damaged one."""
        current = (self._last() or {}).get("name")
        states = sorted(self.output.glob("[!.]*/state.json"), key=lambda path: path.stat().st_mtime)
        runs = [Run(path.parent) for path in states]
        return [run.name for run in runs if run.state["status"] == "waiting" and run.name != current]

    def move(self, name: str, place: int) -> None:
        """Give a waiting run another place (0 is next)."""
        with self._changing() as waiting:
            _require(name, waiting)
            waiting.remove(name)
            waiting.insert(max(0, place), name)

    def cancel(self, name: str) -> None:
        """Take a waiting run out of the queue; what it learned before stays."""
        with self._changing() as waiting:
            _require(name, waiting)
            waiting.remove(name)
            run = Run(self.output / name)
            run.write_state("stopped", run.state["step"], run.state["steps"])

    def discard(self, name: str) -> None:
        """Put a run that ended before its time into the bin, all it learned with it. Raises RunError for another."""
        with self._changing():  # nobody resumes it meanwhile
            job = self.job(name)
            if job.status not in OVER:
                raise RunError(f"{name!r} is {job.status}; only a run that is stopped or broken is deleted here")
            trash.move_to_trash(job.run.folder, self.output)

    def stop(self, name: str) -> None:
        """Ask a running run to finish its step, keep it, and end. Raises RunError if this queue does not run it."""
        current = self._current()
        if current is None or current["name"] != name or not current["pid"]:
            raise RunError(f"{name!r} is not running here; one started on the command line is stopped there, by Ctrl-C")
        write_text(self._request, name)

    def take_stop(self, name: str) -> bool:
        """Whether ``stop`` was called for this run since the last look; a second call ends its process at once."""
        try:
            asked = self._request.read_text(encoding="utf-8") == name
            if asked:
                remove(self._request)
        except OSError:
            return False
        return asked

    def job(self, name: str) -> Job:
        """One run's standing. A run that says it runs or waits, while nobody knows of it, has died."""
        run = Run(self.output / validated_name(name))
        if not any((run.folder / file).is_file() for file in FILES):
            raise RunError(f"there is no run called {name!r} in {self.output}")
        state = run.state
        status, waiting = state["status"], self.waiting()
        if status == "waiting" and name in waiting:
            return Job(run, status, state["step"], state["steps"], place=waiting.index(name))
        if status in ("running", "waiting"):
            status = "running" if self._alive(run) else _ended(run)
        return Job(run, status, state["step"], state["steps"], state.get("reason", ""))

    def jobs(self) -> list[Job]:
        """All runs of the folder: the running one, those that wait in their order, then the rest, newest first."""
        found = []
        for folder in {path.parent for file in FILES for path in self.output.glob(f"[!.]*/{file}")}:
            with contextlib.suppress(UserError, OSError):  # another program's folder, or a run that is being deleted
                if not (folder / "state.json").exists():
                    configs.read_run(folder / "config.yaml")
                changed = max(path.stat().st_mtime for file in FILES if (path := folder / file).exists())
                found.append((self.job(folder.name), changed))
        rank = {"running": 0, "waiting": 1}
        found.sort(key=lambda pair: (rank.get(pair[0].status, 2), pair[0].place or 0, -pair[1]))
        return [job for job, _ in found]

    def start(self) -> None:
        """See to it that a worker is at work if a run waits. Returns at once."""
        if not self.waiting() or held(self._folder / "worker.lock"):
            return
        with (self._folder / "worker.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "training.runs.queue", str(self.output.resolve())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **APART,
            )
        threading.Thread(target=worker.wait, daemon=True).start()  # no zombie is left

    def work(self) -> None:
        """Be the worker: train what waits, one run after another. Returns when nothing waits or another works."""
        make_folder(self._folder)
        lock = FileLock(self._folder / "worker.lock", timeout=LOCK_TIMEOUT)
        with contextlib.suppress(Timeout), lock:
            self._outlast()
            while (name := self._next(lock)) is not None:
                self._wait_for(self._folder / "calibrations" / ".lock")
                with contextlib.suppress(FileNotFoundError):  # somebody deleted its folder: the others' turn
                    process = self._train(name)
                    self._write_current(name, process.pid)
                    self._close(name, process.wait())
                (self._folder / "current.json").unlink(missing_ok=True)

    def busy(self) -> Run | None:
        """The run that is being trained, by this queue or by a command line."""
        return next((job.run for job in self.jobs() if job.status == "running"), None)

    def _outlast(self) -> None:
        """Wait for a training process that a worker before this one left behind: one run per device."""
        if (last := self._last()) is not None:
            self._wait_for(self.output / last["name"] / ".lock")
        (self._folder / "current.json").unlink(missing_ok=True)

    def _wait_for(self, lock: Path) -> None:
        """Wait while another process of ours has the device: a measurement, or a run."""
        while held(lock):
            time.sleep(1)

    def _next(self, lock: Any) -> str | None:
        """Take the next name; with none left the worker's lock goes first, so that who adds one starts a new worker."""
        with self._changing() as waiting:
            if not waiting:
                lock.release()
                return None
            self._write_current(waiting[0], None)
            return waiting.pop(0)

    def _train(self, name: str) -> "subprocess.Popen[bytes]":
        remove(self._request)
        with (self.output / name / "process.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "training.runs.queue", str(self.output), name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _close(self, name: str, code: int) -> None:
        """Where a process ended without a word (killed, out of memory), say so in its run."""
        run, state = Run(self.output / name), Run(self.output / name).state
        if state["status"] in ("running", "waiting"):
            if code in (STOPPED, -signal.SIGTERM):  # the latter while Python itself was still starting
                run.write_state("stopped", state["step"], state["steps"])
            else:
                run.fail(_cause(code))

    def _alive(self, run: Run) -> bool:
        """Whether somebody trains the run, or is about to."""
        current = self._current()
        return (current is not None and current["name"] == run.name) or held(run.folder / ".lock")

    def _current(self) -> dict[str, Any] | None:
        """The worker's run and the process that trains it, while there is a worker."""
        return self._last() if held(self._folder / "worker.lock") else None

    def _last(self) -> dict[str, Any] | None:
        last = read_json(self._folder / "current.json")
        return last if isinstance(last, dict) and {"name", "pid"} <= last.keys() else None

    def _write_current(self, name: str, pid: int | None) -> None:
        write_text(self._folder / "current.json", json.dumps({"name": name, "pid": pid}))

    @property
    def _folder(self) -> Path:
        return self.output / ".queue"

    @property
    def _request(self) -> Path:
        """Holds the name of the run that is asked to stop."""
        return self._folder / "stop"

    @property
    def _list(self) -> Path:
        return self._folder / "waiting.json"

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[str]]:
        """The list of names to change; written when the block ends well."""
        make_folder(self._folder)
        with FileLock(self._folder / "waiting.lock"):
            waiting = self.waiting()
            before = list(waiting)
            yield waiting
            if waiting != before:
                write_text(self._list, json.dumps(waiting, ensure_ascii=False))


def watch_for_stop(queue: Queue, name: str) -> None:
    """Interrupt this process as SIGTERM does once ``queue.stop(name)`` is called: Windows sends no such signal."""

    def watch() -> None:
        while True:
            if queue.take_stop(name):
                _thread.interrupt_main(signal.SIGTERM)
            time.sleep(0.2)

    threading.Thread(target=watch, daemon=True).start()


_probing = threading.Lock()  # two looks at once would each take the other for a holder


def held(lock: Path) -> bool:
    """Whether a living process holds this lock. Looking takes it for an instant: holders must be ready to wait."""
    if not lock.exists():
        return False
    try:
        with _probing, FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def _ended(run: Run) -> Status:
    """What became of a run that nobody holds any more; it may have ended while we looked."""
    status = run.state["status"]
    return "died" if status in ("running", "waiting") else status


def _require(name: str, waiting: list[str]) -> None:
    if name not in waiting:
        raise RunError(f"{name!r} does not wait in the queue")


def _cause(code: int) -> str:
    """Why a process ended that had no time to say so itself."""
    if code == KILLED:
        return "the process was killed, most likely for want of memory; try a smaller batch size or resolution"
    if code < 0:
        return f"the process was ended by signal {signal.Signals(-code).name}; resume to go on"
    return f"the process ended with code {code}; its last words are in process.log"


def main(arguments: list[str]) -> int:
    """``python -m training.runs.queue OUTPUT`` works the queue; with NAME it trains that run. Returns the exit code."""
    output = Path(arguments[0])
    if len(arguments) == 1:
        Queue(output).work()
        return 0
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(encoding="utf-8")  # as the log is read
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also before the loop looks out for it
    watch_for_stop(Queue(output), arguments[1])
    return _train_one(output, arguments[1])


def _train_one(output: Path, name: str) -> int:
    run = Run(output / name)
    try:
        from training.loop import train

        hide_loading_bars()
        train(run.config, output, resume=True)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        if run.state["status"] == "waiting":  # it never got so far as to say so itself
            run.fail(str(error))
        return 1
    except (MemoryError, RuntimeError) as error:
        sys.stderr.write(f"error: {error}\n")
        if "out of memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        run.fail("out of memory; try a smaller batch size or resolution, or gradient checkpointing")
        return 1
    except KeyboardInterrupt:
        return STOPPED
    return 0


if __name__ == "__main__":
    hide_bitsandbytes()
    sys.exit(main(sys.argv[1:]))
