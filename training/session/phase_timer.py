"""Events of a run and the seconds of its phases."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from training.runs.events import Event, Listener, Phase


@dataclass
class PhaseTimer:
    """Send a run's events to its listeners (on the main process only) and measure the seconds of each phase."""

    is_main_process: bool
    listeners: list[Listener]
    phases: dict[str, float] = field(default_factory=dict)
    _emitted: list[Event] = field(default_factory=list)
    _nested: float = 0.0
    _open: list[tuple[str, float, float]] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        """Send an event to every listener."""
        self._emitted.append(event)
        for listener in self.listeners if self.is_main_process else ():
            listener(event)

    def add_listener(self, listener: Listener) -> None:
        """Add a listener and send it all events emitted so far."""
        for event in self._emitted if self.is_main_process else ():
            listener(event)
        self.listeners.append(listener)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announce a phase and add its seconds to ``phases``, without the seconds of nested phases."""
        self.emit(Phase(name))
        self._open.append((name, time.perf_counter(), self._nested))
        try:
            yield
        finally:
            self._close(self._open.pop(), time.perf_counter())

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase so far, open phases included."""
        now, copy = time.perf_counter(), replace(self, phases=dict(self.phases))
        for phase in reversed(self._open):
            copy._close(phase, now)
        return copy.phases

    def add_earlier(self, phases: Mapping[str, float]) -> None:
        """Add the seconds of an earlier session of the same run."""
        for name, seconds in phases.items():
            self.phases[name] = round(self.phases.get(name, 0) + seconds, 2)

    def _close(self, phase: tuple[str, float, float], now: float) -> None:
        name, start, nested_before = phase
        nested = self._nested - nested_before
        self.phases[name] = round(self.phases.get(name, 0) + now - start - nested, 2)
        self._nested = nested_before + now - start
