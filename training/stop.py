"""Stop a run: Ctrl-C and SIGTERM, agreed between processes."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from training.session.processes import Status
from training.session.state import Session


@dataclass
class StopFlag:
    """Whether this process is to stop. ``requested``: by a request to the run, not by a signal."""

    is_set: bool = False
    requested: bool = False


@contextlib.contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Within the block the first Ctrl-C or SIGTERM sets the flag and the second raises KeyboardInterrupt.

    Outside the main thread no signal can be handled, and the flag stays unset.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, frame: Any) -> None:
        if flag.is_set:
            raise KeyboardInterrupt
        flag.is_set = True

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop_requested(session: Session, stop: StopFlag, agree: bool) -> bool:
    """Return whether any process was asked to stop, by a signal or a request to the run.

    All processes get the same answer after the same step.
    Several processes agree on it only if ``agree`` is true, which must be so in all of them.
    """
    if session.accelerator.is_main_process and session.run.take_request("stop"):
        stop.is_set = stop.requested = True
    if session.processes.count > 1 and not agree:
        return False
    return session.processes.agree(session.step, Status.STOP if stop.is_set else Status.OK)
