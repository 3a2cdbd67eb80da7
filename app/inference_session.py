"""A base model held for drawing: loaded when first needed, its adapters kept on it, one drawing at a time.

What a long-lived program (a web page, a notebook) wants of the library: ask for pictures with adapter files, and be
shown them as they come.
"""

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

from hra_diffusion import library, pipeline
from hra_diffusion.adapters.adapter_file import AdapterInfo
from hra_diffusion.errors import UserError
from hra_diffusion.evaluation.clip import Clip, find_clip
from hra_diffusion.generation.previews import DenoisingStep, OnStep
from hra_diffusion.models import loading

T = TypeVar("T")
PREVIEW_SHARE, PREVIEW_EVERY = 8, 0.4
"""A preview is decoded only when drawing has gone on for so many times what the last one cost, and so many seconds: to
show one costs whoever watches, too."""
MAX_KEPT = 12
"""Adapters that stay on the pipeline; with more, those unused for longest go."""


_UNTRIED = object()
_importing = threading.Lock()


def import_libraries() -> None:
    """Import what takes seconds: diffusers, transformers and all of ours that stands on them.

    Every thread of a program that draws comes by here first: one imports while the others wait, who would else find
    transformers half made.
    """
    with _importing:
        importlib.import_module("hra_diffusion.interop")


class Cancelled(UserError):  # noqa: N818 (it is no error)
    """The drawing was asked to stop."""


@dataclass(frozen=True)
class Preview:
    """Pictures on their way: what is known of each request by now, and how far the drawing is (0 to 1)."""

    pictures: Mapping[int, Image.Image]
    done: float


@dataclass(frozen=True)
class Result(Generic[T]):
    """What the drawing came to."""

    value: T


class InferenceSession:
    """One base model and its adapters. Safe to call from several threads: drawings go one after another.

    ``clip``: what scores comparisons, a folder, a hub id or "none"; by default each base's usual model.
    ``prediction_type`` and ``rescale_zero_snr`` go for every base (see loading.load_base).
    """

    def __init__(
        self,
        base: str,
        device: str | None = None,
        dtype: str = "float32",
        clip: str | None = None,
        prediction_type: str | None = None,
        rescale_zero_snr: bool | None = None,
    ):
        self.base, self.device, self.dtype, self.scorer = base, device, dtype, clip
        self.prediction_type, self.rescale_zero_snr = prediction_type, rescale_zero_snr
        self.lock = threading.RLock()
        self._pipe: Any = None
        self._clip: Any = _UNTRIED
        self.unscored = ""
        self._kept: dict[tuple[Path, int], AdapterInfo] = {}

    @property
    def loaded(self) -> bool:
        """Whether the base is in memory."""
        return self._pipe is not None

    @property
    def pipe(self) -> Any:
        """The pipeline; loads it the first time. Who only asks for it does not wait for a drawing to end.

        Raises BaseModelError.
        """
        if self._pipe is not None:
            return self._pipe
        with self.lock:
            if self._pipe is None:
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
        """The CLIP model that scores this base's pictures, or None where there is none: ``unscored`` says why."""
        with self.lock:
            if self._clip is _UNTRIED:
                self._clip, self.unscored = find_clip(self.base, self.scorer, str(self.pipe.device))
            return self._clip

    def change(self, base: str, device: str | None, dtype: str | None = None) -> None:
        """Use another base model, device or precision from now on (``dtype`` None: the same one).

        It is loaded when first needed.
        """
        with self.lock:
            dtype = dtype or self.dtype
            if (base, device, dtype) != (self.base, self.device, self.dtype):
                self.base, self.device, self.dtype = base, device, dtype
                self._pipe, self._kept, self._clip, self.unscored = None, {}, _UNTRIED, ""

    def load_adapters(self, paths: list[Path]) -> list[AdapterInfo]:
        """Have these adapters on the pipeline; returns what each says of itself, under its name there.

        A file that has changed since is loaded anew. Raises AdapterFileError.
        """
        with self.lock:
            keys = [(path.resolve(), path.stat().st_mtime_ns) for path in paths]
            files = {file for file, _ in keys}
            for old in [key for key in self._kept if key[0] in files and key not in keys]:
                pipeline.unload(self.pipe, self._kept.pop(old).name)
            for key in keys:
                info = self._kept.pop(key, None) or library.load_unique(self.pipe, key[0])
                self._kept[key] = info  # the latest come last
            for key in list(self._kept)[:-MAX_KEPT]:
                if key not in keys:
                    pipeline.unload(self.pipe, self._kept.pop(key).name)
            return [self._kept[key] for key in keys]

    def watch(self, draw: Callable[[OnStep], T], total: int, cancel: threading.Event) -> Iterator[Preview | Result[T]]:
        """Run ``draw`` in a thread and yield previews of its ``total`` requests, then its result.

        Previews cost at most an eighth of the time. What ``draw`` raises is raised here; ``cancel`` ends it.
        """
        told: queue.Queue[Any] = queue.Queue()
        watcher = _Watcher(total, told, cancel)
        thread = threading.Thread(target=self._run, args=(draw, watcher, told), daemon=True)
        thread.start()
        try:
            while True:
                item = told.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if isinstance(item, Result):
                    return
        finally:  # also when nobody wants the rest
            cancel.set()
            thread.join()

    def _run(self, draw: Callable[[OnStep], T], watcher: "_Watcher", told: queue.Queue) -> None:
        try:
            with self.lock:
                watcher.require_wanted()  # it may have waited long
                told.put(Result(draw(watcher)))
        except (torch.OutOfMemoryError, MemoryError):
            told.put(UserError("out of memory; draw fewer or smaller pictures at once, or wait for the run at work"))
        except BaseException as error:  # raised again where the pictures are awaited
            told.put(error)


class _Watcher:
    """Told of every denoising step; passes on a preview when that costs little."""

    def __init__(self, total: int, told: queue.Queue, cancel: threading.Event):
        self.total, self.told, self.cancel = total, told, cancel
        self.pictures: dict[int, Image.Image] = {}
        self.finished = 0
        self.cost, self.last = 0.0, 0.0

    def require_wanted(self) -> None:
        """Raises Cancelled if the drawing was asked to stop."""
        if self.cancel.is_set():
            raise Cancelled("stopped")

    def __call__(self, step: DenoisingStep) -> None:
        self.require_wanted()
        last = step.step == step.steps
        now = time.perf_counter()
        if last or now - self.last > max(PREVIEW_EVERY, PREVIEW_SHARE * self.cost):
            self.pictures |= zip(step.indices, step.decode(), strict=True)
            self.last = time.perf_counter()
            self.cost = self.last - now
            part = step.step / step.steps * len(step.indices)
            self.told.put(Preview(dict(self.pictures), (self.finished + part) / self.total))
        if last:
            self.finished += len(step.indices)
