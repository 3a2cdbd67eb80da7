"""Share the CPU cores between processes: limit the spinning of idle threads, and divide the cores.

A waiting OpenMP thread spins before it sleeps. When two processes share a CPU, the spinning threads of one keep the
working threads of the other off the cores, and both become many times slower (``benchmarks/bench_contention.py``).
"""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from hra_diffusion.processes import is_running, start_time

SPIN_COUNT = "16000"
"""Iterations that an idle thread of GNU OpenMP spins before it sleeps (GNU's default: 300,000).

A lower count helps other busy programs but slows a process that runs alone: on a virtual machine with two cores its
steps took 1.5 × as long at 4,000, and 1.07 × at 16,000. The project's own processes divide the cores at any count.
"""
SPIN_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def limit_spinning() -> None:
    """Set the spin count of GNU OpenMP, unless the environment sets it. Call this before importing torch.

    PyTorch's Linux builds use GNU OpenMP; no effect elsewhere. Source: the libgomp manual, GOMP_SPINCOUNT.
    """
    if sys.platform == "linux" and not any(name in os.environ for name in SPIN_SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


@contextlib.contextmanager
def sharing_cores(device: str) -> Iterator[None]:
    """Within the block, let torch use this process's share of the cores: all, divided by the project's busy processes.

    Call ``share_cores`` within the block to follow changes. The number of threads does not change for a device other
    than "cpu", or with OMP_NUM_THREADS in the environment. Blocks may nest and run in several threads.
    """
    if device != "cpu" or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    _enter()
    try:
        share_cores()
        yield
    finally:
        _leave()


def share_cores() -> None:
    """Set torch's number of threads, for the calling thread, to the current share. No effect outside a block."""
    if _all_cores:
        _set_threads(max(1, _all_cores // _count_processes()))


_lock = threading.Lock()
_blocks = 0
_all_cores = 0  # torch's number of threads when this process runs alone; 0 outside all blocks


def _enter() -> None:
    global _blocks, _all_cores
    import torch

    with _lock:
        if _blocks == 0:
            _all_cores = torch.get_num_threads()
            with contextlib.suppress(OSError):  # without an entry other processes do not count this one
                (_folder() / _entry(os.getpid())).touch()
        _blocks += 1


def _leave() -> None:
    global _blocks, _all_cores
    with _lock:
        _blocks -= 1
        _set_threads(_all_cores)
        if _blocks == 0:
            _all_cores = 0
            with contextlib.suppress(OSError):
                (_folder() / _entry(os.getpid())).unlink(missing_ok=True)


def _set_threads(count: int) -> None:
    import torch

    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def _count_processes() -> int:
    """Return the number of this user's processes in a block, at least 1; remove the entries of killed processes."""
    count = 0
    with contextlib.suppress(OSError):
        for path in _folder().glob("[0-9]*-[0-9]*"):
            pid, _, start = path.name.partition("-")
            if is_running(int(pid), float(start)):
                count += 1
            else:
                path.unlink(missing_ok=True)
    return max(1, count)


def _entry(pid: int) -> str:
    """Return the file name of a process's entry: its id and, since ids are reused, its start time."""
    return f"{pid}-{start_time(pid):.2f}"


def _folder() -> Path:
    """Return the folder of this user's entries. Raises PermissionError if another user created it."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    folder = Path(tempfile.gettempdir()) / f"hra-diffusion-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.lstat().st_uid != user:
        raise PermissionError(f"{folder} belongs to another user")
    return folder
