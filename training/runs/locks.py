"""Locks between processes: lock files, which the operating system frees when the holding process ends."""

import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_TIMEOUT = 2.0
"""Seconds to wait for a lock before it counts as held, because ``is_held`` takes a lock for an instant to test it."""
_probing = threading.Lock()  # two concurrent probes would each see the other as the holder


def is_held(lock: Path) -> bool:
    """Return whether a living process holds this lock file.

    The probe takes the lock for an instant, so holders must wait up to ``LOCK_TIMEOUT`` for it.
    """
    if not lock.exists():
        return False
    try:
        with _probing, FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def wait_until_free(lock: Path) -> None:
    """Wait until no process holds this lock file."""
    while is_held(lock):
        time.sleep(1)
