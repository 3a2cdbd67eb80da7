"""Inference session: a base model with its adapters, for long-lived programs such as the web page.

The base model is loaded on first use, and adapters stay on it between calls. One call generates at a time; previews
are available meanwhile. With an output folder, the session shares its device with the training runs of that folder.
"""

import gc
import importlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from PIL import Image

from app.device_hold import DeviceHold
from hra_diffusion import library, pipeline
from hra_diffusion.adapters.adapter_file import AdapterInfo
from hra_diffusion.errors import UserError
from hra_diffusion.evaluation.clip import Clip, find_clip
from hra_diffusion.generation.previews import DenoisingStep, OnStep
from hra_diffusion.models import devices, loading
from training.runs.index import Index

T = TypeVar("T")
PREVIEW_INTERVAL = 0.4
"""Minimum seconds between two previews."""
PREVIEW_COST_FACTOR = 8
"""The time between two previews is at least this multiple of the time that the last one took to decode."""
DEVICE_POLL_SECONDS = 1.0
MAX_ADAPTERS = 12
"""Adapters kept on the pipeline; with more, the least recently used are unloaded."""

_NOT_LOADED = object()
_importing = threading.Lock()


def import_libraries() -> None:
    """Import diffusers, transformers and everything that depends on them, which takes seconds.

    Every thread that generates calls this first: a thread that imports transformers while another thread is doing so
    may see a partially initialized module.
    """
    with _importing:
        importlib.import_module("hra_diffusion.interop")


class Cancelled(UserError):  # noqa: N818 (not an error)
    """The generation was cancelled."""


@dataclass(frozen=True)
class Preview:
    """Intermediate images by the index of their request, and the progress from 0 to 1."""

    images: Mapping[int, Image.Image]
    progress: float


@dataclass(frozen=True)
class Result(Generic[T]):
    """The value that a watched function returned."""

    value: T


class InferenceSession:
    """A base model and its adapters. Thread-safe: calls that generate run one after another.

    Args:
        base: see loading.load_base, as for ``device``, ``dtype``, ``prediction_type`` and ``rescale_zero_snr``.
        clip: the CLIP model that scores comparisons (a folder, a hub id or "none"); by default the base model's.
        output: output folder of the runs that share the device with this session; None for none.
    """

    def __init__(
        self,
        base: str,
        device: str | None = None,
        dtype: str = "float32",
        clip: str | None = None,
        prediction_type: str | None = None,
        rescale_zero_snr: bool | None = None,
        output: Path | None = None,
    ):
        self.base, self.device, self.dtype, self.clip_source = base, device, dtype, clip
        self.prediction_type, self.rescale_zero_snr = prediction_type, rescale_zero_snr
        self.lock = threading.RLock()
        self.hold = DeviceHold(Index(output) if output else None)
        self.gave_way = False
        """Whether the base model was unloaded for a run."""
        self.waits_for = ""
        """What has to end before the generation that was asked for can use the device; "" if it may."""
        self._pipe: Any = None
        self._clip: Any = _NOT_LOADED
        self.unscored = ""
        """Why comparisons are not scored; "" if they are."""
        self._adapters: dict[tuple[Path, int], AdapterInfo] = {}
        """Adapters on the pipeline by (file, modification time), least recently used first."""

    @property
    def loaded(self) -> bool:
        """Whether the base model is in memory."""
        return self._pipe is not None

    @property
    def pipe(self) -> Any:
        """The pipeline, loaded on first use.

        Once it is loaded, access does not wait for a running generation. Raises BaseModelError if it can't be loaded,
        or UserError if a run needs the device's memory.
        """
        if self._pipe is not None:
            return self._pipe
        with self.lock:
            if self._pipe is None:
                if not self.hold.is_granted and (before := self.request_device()):
                    self.hold.release()
                    raise UserError(f"{before} uses the device, and its memory is too small for both; try again later")
                import_libraries()
                self._pipe = loading.load_base(
                    self.base,
                    self.device,
                    self.dtype,
                    prediction_type=self.prediction_type,
                    rescale_zero_snr=self.rescale_zero_snr,
                )
            return self._pipe

    @property
    def clip(self) -> Clip | None:
        """The CLIP model that scores images of the base model; None if there is none (see ``unscored``)."""
        with self.lock:
            if self._clip is _NOT_LOADED:
                self._clip, self.unscored = find_clip(self.base, self.clip_source, str(self.pipe.device))
            return self._clip

    def change(self, base: str, device: str | None, dtype: str | None = None) -> None:
        """Switch to another base model, device or precision (``dtype`` None: the current one).

        The model is loaded on next use, without adapters.
        """
        with self.lock:
            dtype = dtype or self.dtype
            if (base, device, dtype) != (self.base, self.device, self.dtype):
                self.base, self.device, self.dtype = base, device, dtype
                self._unload()

    def _unload(self) -> None:
        """Free the memory of the base model and give the device up."""
        self._pipe, self._adapters, self._clip, self.unscored = None, {}, _NOT_LOADED, ""
        gc.collect()
        torch.cuda.empty_cache()
        self.hold.release()

    def request_device(self) -> str:
        """Ask for the device. Returns "" if it is granted, or what has to end before (see ``DeviceHold.request``)."""
        device = devices.numbered(devices.device_for(self.device))
        kind, base, dtype = device.split(":")[0], self.base, self.dtype
        return self.hold.request(device, lambda: _predict_memory(base, dtype, kind, self.prediction_type))

    def give_way(self) -> None:
        """Unload the base model if a run waits for its memory and nothing is being generated."""
        if self.hold.is_awaited() and self.lock.acquire(blocking=False):
            try:
                self._unload()
                self.gave_way = True
            finally:
                self.lock.release()

    def return_after_run(self) -> None:
        """Load the base model again if it was unloaded for a run and the device is free by now."""
        if not self.gave_way or self._pipe is not None:
            return
        if self.request_device():
            self.hold.release()
        else:
            self.gave_way = False
            _ = self.pipe

    def load_adapters(self, paths: list[Path]) -> list[AdapterInfo]:
        """Load adapter files that are not on the pipeline yet; return their metadata with their names there.

        A file that has changed is loaded again. Raises AdapterFileError if a file can't be loaded.
        """
        with self.lock:
            keys = [(path.resolve(), path.stat().st_mtime_ns) for path in paths]
            files = {file for file, _ in keys}
            for outdated in [key for key in self._adapters if key[0] in files and key not in keys]:
                pipeline.unload(self.pipe, self._adapters.pop(outdated).name)
            for key in keys:
                info = self._adapters.pop(key, None) or library.load_unique(self.pipe, key[0])
                self._adapters[key] = info
            for key in list(self._adapters)[:-MAX_ADAPTERS]:
                if key not in keys:
                    pipeline.unload(self.pipe, self._adapters.pop(key).name)
            return [self._adapters[key] for key in keys]

    def watch(
        self, generate: Callable[[OnStep], T], total: int, cancel: threading.Event
    ) -> Iterator[Preview | Result[T]]:
        """Run ``generate`` in a thread; yield previews of its ``total`` requests, then its result.

        Previews take at most an eighth of the time. Exceptions of ``generate`` are raised here. Setting ``cancel``
        ends it after the current denoising step, as does closing the iterator.
        """
        updates: queue.Queue[Any] = queue.Queue()
        previews = _Previews(total, updates, cancel)
        thread = threading.Thread(target=self._run, args=(generate, previews, updates), daemon=True)
        thread.start()
        try:
            while True:
                update = updates.get()
                if isinstance(update, BaseException):
                    raise update
                yield update
                if isinstance(update, Result):
                    return
        finally:  # also when the iterator is closed early
            cancel.set()
            thread.join()

    def _run(self, generate: Callable[[OnStep], T], previews: "_Previews", updates: queue.Queue) -> None:
        try:
            while True:
                self._wait_for_device(previews)
                with self.lock:
                    previews.raise_if_cancelled()  # while it waited for the lock
                    if self.hold.is_granted:  # or else it gave way to a run meanwhile
                        updates.put(Result(generate(previews)))
                        return
        except (torch.OutOfMemoryError, MemoryError):
            updates.put(
                UserError("out of memory; generate fewer or smaller pictures at once, or wait for the training run")
            )
        except BaseException as error:  # raised again in ``watch``
            updates.put(error)

    def _wait_for_device(self, previews: "_Previews") -> None:
        """Wait until the device is granted. Raises Cancelled."""
        if self.hold.is_granted:
            return
        import_libraries()
        try:
            while before := self.request_device():
                self.waits_for = before
                previews.updates.put(Preview({}, 0.0))
                if previews.cancel.wait(DEVICE_POLL_SECONDS):
                    self.hold.release()
                    previews.raise_if_cancelled()
        finally:
            self.waits_for = ""


def _predict_memory(base: str, dtype: str, device: str, prediction_type: str | None) -> int:
    import_libraries()
    from training.memory.footprint import predict_generation

    return predict_generation(base, dtype, device, prediction_type)


class _Previews:
    """An ``on_step`` callback that puts previews into a queue while their cost stays low."""

    def __init__(self, total: int, updates: queue.Queue, cancel: threading.Event):
        self.total, self.updates, self.cancel = total, updates, cancel
        self.images: dict[int, Image.Image] = {}
        self.finished = 0
        self.cost, self.last = 0.0, 0.0

    def raise_if_cancelled(self) -> None:
        """Raise Cancelled if the generation is to end."""
        if self.cancel.is_set():
            raise Cancelled("stopped")

    def __call__(self, step: DenoisingStep) -> None:
        self.raise_if_cancelled()
        is_last = step.step == step.steps
        now = time.perf_counter()
        if is_last or now - self.last > max(PREVIEW_INTERVAL, PREVIEW_COST_FACTOR * self.cost):
            self.images |= zip(step.indices, step.decode(), strict=True)
            self.last = time.perf_counter()
            self.cost = self.last - now
            part = step.step / step.steps * len(step.indices)
            self.updates.put(Preview(dict(self.images), (self.finished + part) / self.total))
        if is_last:
            self.finished += len(step.indices)
