"""Events of a run and the seconds of its phases."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from training.runs.events import Event, Listener, Phase


@dataclass
class PhaseTimer:
    """Tells the listeners (of the main process) what happens and keeps the seconds of each phase."""

    speaking: bool
    listeners: list[Listener]
    phases: dict[str, float] = field(default_factory=dict)
    _told: list[Event] = field(default_factory=list)
    _elsewhere: float = 0.0
    _open: list[tuple[str, float, float]] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        """Tell every listener."""
        self._told.append(event)
        for listener in self.listeners if self.speaking else ():
            listener(event)

    def add(self, listener: Listener) -> None:
        """A listener that comes late is told what it missed."""
        for event in self._told if self.speaking else ():
            listener(event)
        self.listeners.append(listener)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announce a phase and add up its seconds, without those of phases within it."""
        self.emit(Phase(name))
        self._open.append((name, time.perf_counter(), self._elsewhere))
        try:
            yield
        finally:
            self._close(self._open.pop(), time.perf_counter())

    def seconds(self) -> dict[str, float]:
        """The seconds of each phase until now, of those that are not over too."""
        now, later = time.perf_counter(), replace(self, phases=dict(self.phases))
        for phase in reversed(self._open):
            later._close(phase, now)
        return later.phases

    def go_on_from(self, phases: Mapping[str, float]) -> None:
        """Count the seconds of an earlier session too."""
        for name, seconds in phases.items():
            self.phases[name] = round(self.phases.get(name, 0) + seconds, 2)

    def _close(self, phase: tuple[str, float, float], now: float) -> None:
        name, start, outside = phase
        self.phases[name] = round(self.phases.get(name, 0) + now - start - (self._elsewhere - outside), 2)
        self._elsewhere = outside + now - start
