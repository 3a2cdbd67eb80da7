"""Requests to stop a run: Ctrl-C, SIGTERM, and the agreement of several processes."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from training.session.state import Session


@dataclass
class StopFlag:
    """Set once somebody asks the run to stop."""

    asked: bool = False


@contextlib.contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Within the block the first Ctrl-C or SIGTERM sets the flag; a second one ends the process at once."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def ask(number: int, frame: Any) -> None:
        if flag.asked:
            raise KeyboardInterrupt
        flag.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def agreed(session: Session, stop: StopFlag) -> bool:
    """Whether any process was asked to stop; all of them learn it after the same step."""
    if session.accelerator.num_processes == 1:
        return stop.asked
    flag = torch.tensor(float(stop.asked), device=session.accelerator.device)
    return bool(session.accelerator.reduce(flag, "sum") > 0)  # type: ignore[operator]
