"""Identify processes across restarts, reused process ids, containers and machines."""

import functools
import platform
from pathlib import Path

START_TOLERANCE = 60.0
"""Seconds by which two readings of a process's start time may differ: setting the system clock shifts them."""


@functools.cache
def process_space() -> str:
    """Return an identifier of the machine, its current boot and the container: process ids are unique within it."""
    parts = [platform.node()]
    for path in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):  # Linux
        if path.is_symlink():
            parts.append(str(path.readlink()))
        elif path.is_file():
            parts.append(path.read_text(encoding="ascii").strip())
    return " ".join(parts)


def start_time(pid: int) -> float:
    """Return the start time of a process in seconds since the epoch; 0 if it has ended."""
    import psutil  # takes 40 ms, which --help does not need

    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return 0.0


def is_running(pid: int, started: float) -> bool:
    """Whether the process with this id and start time, in this process space, is running."""
    return abs(start_time(pid) - started) < START_TOLERANCE
