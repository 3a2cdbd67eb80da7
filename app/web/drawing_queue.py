"""The queue of requests that generate images: one at a time, in fair turns between visitors."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from app.inference_session import Cancelled
from hra_diffusion.errors import UserError

MAX_REQUESTS = 5
"""Requests of one visitor: one that runs and four that wait."""
MAX_TURNS = 40
"""Requests of all visitors; each has a thread of the server."""
REQUEST_BUDGET, VISITOR_BUDGET = 2**31, 2**32
"""Pixel-steps (width × height × steps × images) of one request, and of all requests of a visitor in the queue."""
POLL_SECONDS = 1.0
"""How often a waiting request looks whether its visitor is still there."""


@dataclass(eq=False)
class Turn:
    """A request in the queue.

    ``name``: what ``cancel`` takes. ``start``: its place in time, in pixel-steps. Set ``cancelled`` to end it.
    """

    visitor: str
    name: str
    cost: int
    start: int
    cancelled: threading.Event = field(default_factory=threading.Event)


class DrawingQueue:
    """Start-time fair queueing (Goyal, Vin and Cheng, 1997): visitors with equal needs take equal turns.

    A visitor's requests start one after another on a clock that counts pixel-steps; the one with the earliest start is
    next. Whoever asked for little so far does not wait behind somebody's many requests.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._turns: list[Turn] = []
        self._running: Turn | None = None
        self._clock = 0
        self._ends: dict[str, int] = {}

    @contextlib.contextmanager
    def place(self, visitor: str, cost: int, name: str) -> Iterator[Turn]:
        """Take a place in the queue until the block ends. Raises UserError for a visitor beyond a limit."""
        turn = self._add(visitor, cost, name)
        try:
            yield turn
        finally:
            with self._changed:
                self._turns.remove(turn)
                self._running = None if self._running is turn else self._running
                if not self._turns:
                    self._clock, self._ends = 0, {}
                self._changed.notify_all()

    def wait(self, turn: Turn) -> Iterator[int]:
        """Yield how many requests are ahead, at least every second, until it is this one's turn. Raises Cancelled."""
        while True:
            with self._changed:
                if turn.cancelled.is_set():
                    raise Cancelled("stopped")
                if (ahead := self._ahead(turn)) == 0:
                    self._running, self._clock = turn, turn.start
                    return
            yield ahead  # Gradio closes this iterator if the visitor has left
            with self._changed:
                self._changed.wait_for(lambda: turn.cancelled.is_set() or self._ahead(turn) == 0, POLL_SECONDS)

    def cancel(self, name: str) -> bool:
        """Cancel the running and waiting requests of this name. Returns whether there are any."""
        with self._changed:
            own = [turn for turn in self._turns if turn.name == name]
            for turn in own:
                turn.cancelled.set()
            self._changed.notify_all()
        return bool(own)

    def _ahead(self, turn: Turn) -> int:
        earlier = [other for other in self._turns if other.start < turn.start or other is self._running]
        same = [other for other in self._turns if other.start == turn.start and other not in earlier]
        return len(earlier) + same.index(turn)

    def _add(self, visitor: str, cost: int, name: str) -> Turn:
        if cost > REQUEST_BUDGET:
            raise UserError(
                f"this takes {cost / REQUEST_BUDGET:.1f} times the largest request; choose fewer pictures or steps, or "
                "a smaller size"
            )
        with self._changed:
            own = [turn for turn in self._turns if turn.visitor == visitor]
            if len(own) >= MAX_REQUESTS or sum(turn.cost for turn in own) + cost > VISITOR_BUDGET:
                raise UserError("your earlier requests are still in the queue; wait for them, or press Stop")
            if len(self._turns) >= MAX_TURNS:
                raise UserError("too many requests are waiting for the device; try again in a minute")
            turn = Turn(visitor, name, cost, max(self._clock, self._ends.get(visitor, 0)))
            self._turns.append(turn)
            self._ends[visitor] = turn.start + cost
        return turn
