"""Worker of a device: trains the waiting runs one after another: ``python -m training.runs.dispatch OUTPUT DEVICE``.

The worker imports neither torch nor the configuration: it waits most of the time, beside runs that need the memory.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from hra_diffusion.files import remove
from training.runs import leases, state
from training.runs.index import Index

STOPPED = 130
"""Exit code of a process that was asked to stop; the command line uses the same."""
KILLED = -getattr(signal, "SIGKILL", 9)
"""Exit code of a process that the system killed; Windows has no such signal."""
POLL_SECONDS = 0.5


def dispatch(index: Index, device: str, forever: bool = False) -> None:
    """Train the waiting runs that this device suits until none is left, or for ever.

    Returns at once if the device has a worker already.
    """
    with leases.held(index, f"worker {device}", "dispatch", f"the worker of {device}") as worker:
        while worker and (run := _take_next(index, device, None if forever else worker)):
            name, lease = run
            with leases.held(index, f"end of {name}", "dispatch", f"the worker of {device}"):
                try:
                    code = _start_training(index, name, device, lease).wait()
                    if leases.exists(index, lease):  # or else the process has recorded its end itself
                        record_end(index, name, code)
                except FileNotFoundError:  # its folder was deleted
                    index.forget(name)
                finally:
                    leases.release(index, lease)


def _take_next(index: Index, device: str, worker: str | None) -> tuple[str, str] | None:
    """Wait for a run, and until the device is free for it. Returns its name and the lease on it.

    If no run is waiting and ``worker``, the worker's lease, is given, the lease is released in the same transaction:
    a run added later starts another worker.
    """
    while True:
        with index.writing():
            name = _next_name(index, device)
            if name is None and worker:
                leases.release(index, worker)
                return None
            free = not any(lease.kind in leases.EXCLUSIVE for lease in leases.live(index, f"device {device}"))
            if name and free and (lease := leases.acquire(index, f"run {name}", "train", leases.run_purpose(name))):
                return name, lease
        time.sleep(POLL_SECONDS)


def _next_name(index: Index, device: str) -> str | None:
    taken = leases.training(index)
    rows = index.rows(
        "SELECT name FROM folders WHERE status = 'waiting' AND device IN ('', ?, ?) ORDER BY place",
        device,
        device.split(":")[0],
    )
    return next((row["name"] for row in rows if row["name"] not in taken), None)


def _start_training(index: Index, name: str, device: str, lease: str) -> "subprocess.Popen[bytes]":
    folder = index.output / name
    remove(folder / "stop")  # of an earlier process
    with (folder / "process.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "training.worker", str(index.output), name, device, lease],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | _visible_devices(device),
        )


def _visible_devices(device: str) -> dict[str, str]:
    """Return the environment in which a process sees this GPU alone."""
    kind, _, number = device.partition(":")
    return {"CUDA_VISIBLE_DEVICES": number} if kind == "cuda" and number else {}


def record_end(index: Index, name: str, code: int) -> None:
    """Record the end of a process that was killed before it could do so itself."""
    folder = index.output / name
    now = state.read(folder)
    if now is None or now.status not in ("running", "waiting"):
        return
    if code in (STOPPED, -signal.SIGTERM):  # SIGTERM itself ends a Python that is still starting
        if not (folder / "stop").exists():  # the machine shuts down: the run continues later
            return
        changes = {"status": "stopped"}
    else:
        changes = {"status": "failed", "reason": cause(code)}
    state.write(folder, now.model_copy(update={**changes, "queued": None}))


def cause(code: int) -> str:
    """Return why a process ended, from its exit code."""
    if code == KILLED:
        return "the process was killed, most likely for lack of memory; try a smaller batch size or resolution"
    if code < 0:
        return f"the process was ended by signal {signal.Signals(-code).name}; resume to continue"
    return f"the process ended with code {code}; the end of process.log says more"


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        dispatch(Index(Path(sys.argv[1])), sys.argv[2])
