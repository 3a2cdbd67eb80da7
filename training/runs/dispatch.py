"""Start the waiting runs of an output folder one after another: ``python -m training.runs.dispatch OUTPUT``."""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hra_diffusion.files import make_folder, remove
from training.runs import calibration
from training.runs.locks import LOCK_TIMEOUT, wait_until_free
from training.runs.queue import STOPPED, Queue
from training.runs.run_folder import Run

KILLED = -getattr(signal, "SIGKILL", 9)
"""Exit code of a process that the system killed; Windows has no such signal."""


def dispatch(queue: Queue) -> None:
    """Train waiting runs until none is left. Returns at once if another dispatcher is at work."""
    make_folder(queue.folder)
    lock = FileLock(queue.dispatcher_lock, timeout=LOCK_TIMEOUT)
    with contextlib.suppress(Timeout), lock:
        _wait_for_predecessor(queue)
        while (name := _take_next(queue, lock)) is not None:
            wait_until_free(calibration.lock_path(queue.output))
            with contextlib.suppress(FileNotFoundError):  # its folder was deleted
                process = _start_training(queue, name)
                queue.write_current(name, process.pid)
                _record_end(Run(queue.output / name), process.wait())
            queue.clear_current()


def _wait_for_predecessor(queue: Queue) -> None:
    """Wait for a training process that outlived its dispatcher, because only one run trains at a time."""
    if (last := queue.last_started()) is not None:
        wait_until_free(queue.output / last["name"] / ".lock")
    queue.clear_current()


def _take_next(queue: Queue, lock: Any) -> str | None:
    """Take the next name. If none is left, release the dispatcher's lock first, so that a run added now starts one."""
    with queue.changing() as waiting:
        if not waiting:
            lock.release()
            return None
        queue.write_current(waiting[0], None)
        return waiting.pop(0)


def _start_training(queue: Queue, name: str) -> "subprocess.Popen[bytes]":
    remove(queue.stop_request)
    with (queue.output / name / "process.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "training.worker", str(queue.output), name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _record_end(run: Run, code: int) -> None:
    """Record the end of a process that was killed before it could do so itself."""
    state = run.state
    if state["status"] in ("running", "waiting"):
        if code in (STOPPED, -signal.SIGTERM):  # SIGTERM itself ends a Python that is still starting
            run.write_state("stopped", state["step"], state["steps"])
        else:
            run.fail(cause(code))


def cause(code: int) -> str:
    """Return why a process ended, from its exit code."""
    if code == KILLED:
        return "the process was killed, most likely for lack of memory; try a smaller batch size or resolution"
    if code < 0:
        return f"the process was ended by signal {signal.Signals(-code).name}; resume to continue"
    return f"the process ended with code {code}; the end of process.log says more"


if __name__ == "__main__":
    dispatch(Queue(Path(sys.argv[1])))
