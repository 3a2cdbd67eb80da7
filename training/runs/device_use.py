"""Use of a device by runs, measurements and generation: who holds it, and whether their memory fits side by side."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from hra_diffusion.models import devices
from training.runs import leases
from training.runs.index import Index
from training.runs.leases import Lease

GIB = 2**30
POLL_SECONDS = 0.5
USABLE = 0.9
"""Part of a device's memory that is planned with; the rest is for the system and for fragmentation."""


@dataclass(frozen=True)
class DeviceUse:
    """A use of a device, granted or waiting. ``holder`` identifies its lease."""

    index: Index
    device: str
    holder: str

    def granted(self) -> bool:
        """Grant the use if it fits beside the others by now, and return whether it is granted.

        Raises LeaseError if the lease was lost.
        """
        return leases.try_waiting(
            self.index, self.holder, lambda own, others: fits(self.device, own.kind, own.memory, others)
        )

    def others(self) -> list[Lease]:
        """Return the other granted uses of the device."""
        return [lease for lease in users(self.index, self.device) if lease.holder != self.holder and not lease.waiting]

    def is_awaited(self) -> bool:
        """Whether another use waits that would fit without this one."""
        waiting, others = [lease for lease in users(self.index, self.device) if lease.waiting], self.others()
        return any(fits(self.device, lease.kind, lease.memory, others) for lease in waiting)

    def fits_beside(self, kind: str, memory: int) -> bool:
        """Whether another use would fit beside this one alone."""
        own = [lease for lease in users(self.index, self.device) if lease.holder == self.holder]
        return fits(self.device, kind, memory, own)

    def release(self) -> None:
        """End the use."""
        leases.release(self.index, self.holder)


def begin(index: Index, device: str, kind: str, purpose: str, memory: int) -> DeviceUse:
    """Enter a use of a device: granted at once if it fits beside the others, else waiting (see ``granted``).

    Args:
        index: the index of the output folder whose programs share the device.
        device: "cpu", "mps" or "cuda:0".
        kind: "train", "measure" or "generate".
        purpose: what it is for, as shown to people: "the run Rex".
        memory: bytes needed on the device.
    """

    def allowed(others: list[Lease]) -> bool:
        return fits(device, kind, memory, others)

    holder = leases.acquire(index, f"device {device}", kind, purpose, memory=memory, allowed=allowed, wait=True)
    return DeviceUse(index, device, str(holder))


def fits(device: str, kind: str, memory: int, others: list[Lease]) -> bool:
    """Whether a use fits beside others: in memory, and if it trains or measures, without another one that does.

    A use that alone exceeds the device fits if it is the only one: its run reports what to change.
    """
    if not others:
        return True
    if kind in leases.EXCLUSIVE and any(other.kind in leases.EXCLUSIVE for other in others):
        return False
    return memory + sum(other.memory for other in others) <= USABLE * devices.memory(device)


def users(index: Index, device: str) -> list[Lease]:
    """Return the uses of a device, oldest first. Creates no index."""
    return leases.live(index, f"device {device}") if index.path.exists() else []


@contextlib.contextmanager
def using(index: Index, device: str, kind: str, purpose: str, memory: int, wait: bool = True) -> Iterator[DeviceUse]:
    """Within the block, use a device; before it, wait until the use is granted, unless ``wait`` is false."""
    use = begin(index, device, kind, purpose, memory)
    try:
        while wait and not use.granted():
            time.sleep(POLL_SECONDS)
        yield use
    finally:
        use.release()


def describe(others: list[Lease]) -> str:
    """Return who uses a device: "a run (5.1 GB) and the page (4.0 GB)". A run's name is for its owner alone."""
    names = {"train": "a run", "measure": "a measurement"}
    uses = ((names.get(lease.kind, lease.purpose), lease.memory / GIB) for lease in others)
    return " and ".join(f"{name} ({memory:.1f} GB)" for name, memory in uses)
