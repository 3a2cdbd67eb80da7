"""What the page follows, such as the runs: a small answer tells each browser which parts have changed.

Browsers ask for it every two seconds, 0.1 ms each, and refresh those parts. The parts are looked up once a second,
however many browsers ask.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

PATH = "/pulse"
PERIOD = 1.0


@dataclass
class Pulse:
    """The parts of the page that change by themselves, each with a function that returns what it shows."""

    sources: dict[str, Callable[[], object]] = field(default_factory=dict)
    _answer: bytes = b"{}"
    _time: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_fresh(self) -> bool:
        """Whether ``answer`` returns at once."""
        return time.monotonic() - self._time <= PERIOD

    def answer(self) -> bytes:
        """Return a digest of each part by its name, as JSON."""
        with self._lock:
            if not self.is_fresh:
                parts = {name: _digest(source()) for name, source in self.sources.items()}
                self._answer, self._time = json.dumps(parts).encode(), time.monotonic()
            return self._answer


def _digest(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:12]
