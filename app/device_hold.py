"""The page's hold on its device: taken before the base model is loaded, given up when a run needs the memory."""

import threading
from collections.abc import Callable

from training.runs import device_use
from training.runs.device_use import DeviceUse
from training.runs.index import Index
from training.runs.leases import LeaseError


class DeviceHold:
    """A use of a device by this process, shared by its threads.

    Args:
        index: the index of the output folder whose programs share the device; None to share it with none.
    """

    def __init__(self, index: Index | None):
        self._index = index
        self._lock = threading.Lock()
        self._use: DeviceUse | None = None
        self._granted = False

    def request(self, device: str, memory: Callable[[], int]) -> str:
        """Ask for the device, once; call this again until it is granted.

        Args:
            device: as ``devices.training_devices`` names it.
            memory: returns the bytes that the base model and a batch of images need.

        Returns:
            "" if the device is granted, or what has to end before.
        """
        if self._index is None:
            return ""
        with self._lock:
            if self._use is None:
                self._use = device_use.begin(self._index, device, "generate", "the page", memory())
            try:
                self._granted = self._granted or self._use.granted()
            except LeaseError:  # the index was made anew
                self._use, self._granted = None, False
                return "another request"
            return "" if self._granted else device_use.describe(self._use.others())

    @property
    def is_granted(self) -> bool:
        """Whether the device may be used."""
        return self._index is None or self._granted

    def is_awaited(self) -> bool:
        """Whether a run waits for the memory of this hold."""
        use = self._use
        return use is not None and self._granted and use.is_awaited()

    def gives_way_to(self, memory: int) -> bool:
        """Whether a run with this memory in bytes does not fit beside this hold."""
        use = self._use
        return use is not None and self._granted and not use.fits_beside("train", memory)

    def neighbours(self) -> str:
        """Return what else uses the device at present, for people; "" for nothing."""
        use = self._use
        return device_use.describe(use.others()) if use is not None and self._granted else ""

    def release(self) -> None:
        """Give the device up, or the place in the queue for it."""
        with self._lock:
            if self._use is not None:
                self._use.release()
            self._use, self._granted = None, False
