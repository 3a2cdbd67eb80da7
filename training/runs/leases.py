"""Leases on runs, devices and workers, held in the index of an output folder.

A lease ends when its holder releases it or its process ends. Processes in another container or on another machine can't
be seen; their leases end ``STALE_SECONDS`` after their last heartbeat.
"""

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hra_diffusion.errors import UserError
from hra_diffusion.processes import is_running, process_space, start_time
from training.runs.index import Index

HEARTBEAT_SECONDS = 10.0
EXCLUSIVE = ("train", "measure")
"""Kinds of use of which a device serves one at a time: they compute all the time."""
STALE_SECONDS = 60.0
"""Six heartbeats; also more than the clocks of two machines differ."""


class LeaseError(UserError):
    """A lease was lost: another process holds what it was for."""


@dataclass(frozen=True)
class Lease:
    """A row of the table.

    Attributes:
        holder: random identifier.
        resource: what it is for, such as "run Rex", "device cuda:0" or "worker cpu".
        kind: what the holder does: "train", "measure", "generate" or "dispatch".
        purpose: the same for people, such as "the run Rex".
        memory: bytes of the device that the holder needs.
        waiting: whether the holder still waits for the device.
        space: see ``processes.process_space``, as for ``pid`` and ``started``.
        since: when it began, in Unix seconds.
        heartbeat: last sign of life in Unix seconds.
    """

    holder: str
    resource: str
    kind: str
    purpose: str
    memory: int
    waiting: bool
    space: str
    pid: int
    started: float
    since: float
    heartbeat: float

    @property
    def is_alive(self) -> bool:
        """Whether the holder's process lives."""
        if self.space == process_space():
            return is_running(self.pid, self.started)
        return time.time() - self.heartbeat < STALE_SECONDS


def live(index: Index, resource: str = "", kind: str = "") -> list[Lease]:
    """Return the leases of living processes, oldest first.

    Args:
        index: the index that holds them.
        resource: of this resource alone.
        kind: of the resources that begin with this word, such as "run".
    """
    rows = index.rows("SELECT * FROM leases ORDER BY since, rowid")
    leases = (Lease(**{**row, "waiting": bool(row["waiting"])}) for row in rows)
    return [
        lease
        for lease in leases
        if resource in ("", lease.resource) and (not kind or lease.resource.startswith(f"{kind} ")) and lease.is_alive
    ]


def training(index: Index) -> dict[str, Lease]:
    """Return the leases of the runs that a process trains or is about to, by name."""
    return {lease.resource.removeprefix("run "): lease for lease in live(index, kind="run")}


def run_purpose(name: str) -> str:
    """Return the purpose of a run's leases. It begins with a word for people and ends with the run's name."""
    return f"the run {name}"


def acquire(
    index: Index,
    resource: str,
    kind: str,
    purpose: str,
    *,
    memory: int = 0,
    allowed: Callable[[list[Lease]], bool] = lambda others: not others,
    wait: bool = False,
) -> str | None:
    """Acquire a lease if the other living ones on its resource allow it. Returns its holder, or None.

    With ``wait``, a lease that is not allowed is entered as waiting (see ``try_waiting``).
    """
    holder = uuid.uuid4().hex
    with index.writing() as database:
        everyone = live(index)
        marks = ",".join("?" * len(everyone))
        database.execute(f"DELETE FROM leases WHERE holder NOT IN ({marks})", [lease.holder for lease in everyone])
        others = [lease for lease in everyone if lease.resource == resource]
        waiting = not allowed(others)
        if waiting and not wait:
            return None
        pid, now = os.getpid(), time.time()
        values = (holder, resource, kind, purpose, memory, waiting, process_space(), pid, start_time(pid), now, now)
        database.execute(f"INSERT INTO leases VALUES ({','.join('?' * len(values))})", values)
    _beat_for(index, holder, resource)
    return holder


def try_waiting(index: Index, holder: str, allowed: Callable[[Lease, list[Lease]], bool]) -> bool:
    """Grant a waiting lease if ``allowed`` is true of it and the others on its resource.

    Those that came later and wait are left out.
    """
    with index.writing() as database:
        everyone = live(index)
        own = next((lease for lease in everyone if lease.holder == holder), None)
        if own is None:
            raise LeaseError("the place in the queue for the device was lost; try again")
        same = [lease for lease in everyone if lease.resource == own.resource]
        before = same[: same.index(own)]
        others = [lease for lease in same if lease != own and (not lease.waiting or lease in before)]
        if own.waiting and allowed(own, others):
            database.execute("UPDATE leases SET waiting = 0 WHERE holder = ?", (holder,))
            return True
    return not own.waiting


def release(index: Index, holder: str) -> None:
    """End a lease."""
    _held.pop(holder, None)
    with index.writing() as database:
        database.execute("DELETE FROM leases WHERE holder = ?", (holder,))


def adopt(index: Index, holder: str, resource: str) -> None:
    """Take over a lease that the parent process acquired for this one. Raises LeaseError if it has ended."""
    pid = os.getpid()
    with index.writing() as database:
        changed = database.execute(
            "UPDATE leases SET space = ?, pid = ?, started = ?, heartbeat = ? WHERE holder = ?",
            (process_space(), pid, start_time(pid), time.time(), holder),
        ).rowcount
    if not changed:
        raise LeaseError("another process has taken over this run")
    _adopted.add(holder)
    _beat_for(index, holder, resource)


def exists(index: Index, holder: str) -> bool:
    """Whether a lease was not released, even if its process has ended."""
    return bool(index.value("SELECT count(*) FROM leases WHERE holder = ?", holder))


def require(index: Index, resource: str) -> None:
    """Raise LeaseError if this process has lost its lease on a resource, as it may after a long suspension."""
    own = [holder for holder, held_one in list(_held.items()) if held_one == (index, resource)]
    if own and not exists(index, own[0]):
        raise LeaseError("another process has taken over this run while this one was suspended; nothing was written")


@contextlib.contextmanager
def held(index: Index, resource: str, kind: str, purpose: str) -> Iterator[str | None]:
    """Within the block, hold the only lease on a resource; yields its holder, or None if another one holds it.

    A lease that this process has adopted counts once.
    """
    holder = _take_adopted(index, resource) or acquire(index, resource, kind, purpose)
    try:
        yield holder
    finally:
        if holder:
            release(index, holder)


def _take_adopted(index: Index, resource: str) -> str | None:
    for lease in live(index, resource):
        if lease.holder in _adopted:
            _adopted.discard(lease.holder)
            return lease.holder
    return None


_adopted: set[str] = set()
_held: dict[str, tuple[Index, str]] = {}
"""Index and resource of the leases of this process, by holder."""
_starting = threading.Lock()
_heart: threading.Thread | None = None


def _beat_for(index: Index, holder: str, resource: str) -> None:
    """Send heartbeats for a lease until it is released."""
    global _heart
    _held[holder] = (index, resource)
    with _starting:
        if _heart is None:
            _heart = threading.Thread(target=_beat, name="heartbeat", daemon=True)
            _heart.start()


def _beat() -> None:
    while True:
        time.sleep(HEARTBEAT_SECONDS)
        for holder, (index, _) in list(_held.items()):
            with contextlib.suppress(UserError), index.writing() as database:  # such as a full disk
                database.execute("UPDATE leases SET heartbeat = ? WHERE holder = ?", (time.time(), holder))
