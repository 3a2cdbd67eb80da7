"""CPU threads of several processes: idle ones sleep soon, and processes that compute at the same time share the cores.

A waiting OpenMP thread spins before it sleeps. On a CPU that two processes share, the spinning threads of one keep the
working threads of the other off the cores, and both slow down many times over (``benchmarks/bench_contention.py``).
"""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

SPIN_COUNT = "16000"
"""Iterations that an idle thread of GNU's OpenMP spins before it sleeps; its own default is 300,000.

Fewer help more beside other busy programs but cost a process that is alone: at 4,000 its steps took 1.5 × as long on a
virtual machine with two cores, at 16,000 1.07 ×. Our own processes share the cores at any count.
"""
SAME_START = 60.0
"""Seconds by which two readings of a process's start may differ: they shift when the system's clock is set."""
SPIN_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def limit_spinning() -> None:
    """Set the spin count of GNU's OpenMP, unless the environment has a setting for it. Call it before importing torch.

    PyTorch's Linux builds use GNU's OpenMP; elsewhere nothing changes. Source: the libgomp manual, GOMP_SPINCOUNT.
    """
    if sys.platform == "linux" and not any(name in os.environ for name in SPIN_SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


@contextlib.contextmanager
def sharing_cores(device: str) -> Iterator[None]:
    """Within the block torch uses this process's share of the cores: all, divided by our processes that compute.

    Call ``share_cores`` within the block to follow changes. For a device other than "cpu", or with OMP_NUM_THREADS in
    the environment, the number of threads stays as it is. Blocks may nest and run in several threads.
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
    """Set torch's threads (of the calling thread) to the share of ``sharing_cores``; no effect outside such a block."""
    if _all_cores:
        _set_threads(max(1, _all_cores // _count_processes()))


_lock = threading.Lock()
_blocks = 0
_all_cores = 0  # torch's threads when this process has the CPU to itself; 0 outside of all blocks


def _enter() -> None:
    global _blocks, _all_cores
    import torch

    with _lock:
        if _blocks == 0:
            _all_cores = torch.get_num_threads()
            with contextlib.suppress(OSError):  # without an entry the other processes do not count this one
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
    """The processes of this user that compute now, at least 1. Entries of processes that were killed are removed."""
    count = 0
    with contextlib.suppress(OSError):
        for path in _folder().glob("[0-9]*-[0-9]*"):
            pid, _, start = path.name.partition("-")
            if abs(_start_time(int(pid)) - float(start)) < SAME_START:
                count += 1
            else:
                path.unlink(missing_ok=True)
    return max(1, count)


def _entry(pid: int) -> str:
    """A process's file name: its id and, since ids are reused, its start time."""
    return f"{pid}-{_start_time(pid):.2f}"


def _start_time(pid: int) -> float:
    """When a process began, in seconds since the epoch; 0 for one that has ended."""
    import psutil  # takes 40 ms, and no command's --help waits for it

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def _folder() -> Path:
    """The folder of the entries, this user's own. Raises PermissionError if somebody else made it."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    folder = Path(tempfile.gettempdir()) / f"hra-diffusion-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.lstat().st_uid != user:
        raise PermissionError(f"{folder} belongs to another user")
    return folder
