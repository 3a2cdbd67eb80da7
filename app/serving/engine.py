"""The queue of pictures, and the thread that draws them in batches: pictures of many adapters in each.

A picture joins a batch at its first step. It joins whichever batch starts next with the same settings: size, steps,
scheduler and guidance scale.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from app.serving.errors import ApiError
from app.serving.metrics import Metrics
from hra_diffusion.adapters.gathered import PreparedAdapter
from hra_diffusion.errors import UserError
from hra_diffusion.generation.png import PNG_KEY, describe
from hra_diffusion.generation.previews import DenoisingStep
from hra_diffusion.generation.requests import FullSettings, Request
from hra_diffusion.generation.sampling import generate_batch

BUSY_SECONDS = 5.0
"""When a client that found the queue full should try again."""
STOP_SECONDS = 20
"""How long the current batch may take once the engine stops."""


@dataclass(eq=False)
class Picture:
    """A picture to draw for a client. ``future`` gets the image or an exception.

    ``previews``: after which steps ``on_preview`` is called, with the number of the preview and a noisy image.
    """

    client: str
    request: Request
    settings: FullSettings
    adapter: PreparedAdapter | None = None
    previews: tuple[int, ...] = ()
    on_preview: Callable[[int, Image.Image], object] = lambda number, image: None
    future: "Future[Image.Image]" = field(default_factory=Future)
    abandoned: bool = False
    """Whether nobody waits for the picture any more."""
    start: int = 0
    """Its place in the queue, in pixel-steps."""
    since: float = field(default_factory=time.perf_counter)

    @property
    def cost(self) -> int:
        """Pixel-steps."""
        return self.settings.width * self.settings.height * self.settings.steps

    def joins(self, other: "Picture") -> bool:
        """Whether the two can be in one batch."""
        kinds = {picture.adapter.kind for picture in (self, other) if picture.adapter}
        return self.settings == other.settings and len(kinds) < 2


class Abandoned(Exception):  # noqa: N818 (not an error)
    """Nobody waits for any picture of the batch."""


class Engine:
    """Draws pictures on one pipeline in a thread of its own.

    Clients take turns by start-time fair queueing (see ``app.web.drawing_queue``): who asked for little so far does not
    wait behind somebody's many pictures.

    Args:
        pipe: the base model's pipeline.
        batch_size: pictures in a batch, at most.
        max_queue: pictures that may wait.
    """

    def __init__(self, pipe: Any, batch_size: int = 8, max_queue: int = 256, metrics: Metrics | None = None):
        self.pipe, self.batch_size, self.max_queue = pipe, batch_size, max_queue
        self.metrics = metrics or Metrics()
        self._changed = threading.Condition()
        self._queue: list[Picture] = []
        self._clock, self._ends = 0, dict[str, int]()
        self._batch: Sequence[Picture] = ()
        self._stopping = self._late = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether pictures are being drawn."""
        return self._thread.is_alive() and not self._stopping

    def require_room(self, pictures: int) -> None:
        """Raise ApiError: 503 if so many more pictures can't wait, or the engine has stopped; 413 if they never can."""
        if not self.is_alive:
            raise _stopping()
        if pictures > self.max_queue:
            raise ApiError(413, "request_too_large", f"ask for at most {self.max_queue} pictures at once")
        waiting = sum(not picture.future.cancelled() for picture in self._queue)
        if waiting + pictures > self.max_queue:
            raise ApiError(503, "overloaded", "too many pictures are waiting; try again later", BUSY_SECONDS)

    def submit(self, pictures: Sequence[Picture]) -> None:
        """Put pictures into the queue. Raises ApiError (503, 413) if there is no room for all of them."""
        with self._changed:
            self.require_room(len(pictures))
            for picture in pictures:
                picture.start = max(self._clock, self._ends.get(picture.client, 0))
                self._ends[picture.client] = picture.start + picture.cost
                self._queue.append(picture)
            self._changed.notify()
        self.metrics.waiting.set(len(self._queue))

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Refuse the pictures that wait at once, and those of the current batch if it takes more than ``seconds``.

        Returns when the batch has ended, which may be a denoising step later.
        """
        self._refuse_waiting()
        self._thread.join(seconds)
        self._late = True
        for picture in self._batch:
            _answer(picture, _stopping())
        self._thread.join()

    def _refuse_waiting(self) -> None:
        with self._changed:
            self._stopping = True
            waiting, self._queue = self._queue, []
            self._changed.notify()
        self.metrics.waiting.set(0)
        for picture in waiting:
            if picture.future.set_running_or_notify_cancel():
                picture.future.set_exception(_stopping())

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._draw(batch)
        finally:
            self._refuse_waiting()

    def _next_batch(self) -> list[Picture]:
        """Wait for pictures, and take those of the next batch from the queue; none if the engine stops."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or self._stopping)
                if self._stopping:
                    return []
                for picture in self._queue:
                    if picture.abandoned:
                        picture.future.cancel()
                self._queue = [picture for picture in self._queue if not picture.abandoned]
                batch: list[Picture] = []
                for picture in sorted(self._queue, key=lambda picture: picture.start):
                    if len(batch) < self.batch_size and all(picture.joins(other) for other in batch):
                        batch.append(picture)
                self._queue = [picture for picture in self._queue if picture not in batch]
                self._clock = batch[0].start if batch else 0
                if not self._queue:
                    self._ends = {}
                self.metrics.waiting.set(len(self._queue))
                if batch := [picture for picture in batch if picture.future.set_running_or_notify_cancel()]:
                    self._batch = batch
                    return batch

    def _draw(self, batch: Sequence[Picture]) -> None:
        """Draw a batch. If it fails, each half is drawn alone: one picture's failure is not that of the others."""
        prepared = {_use(picture): picture.adapter for picture in batch if picture.adapter}
        requests = [dataclasses.replace(picture.request, adapters=_use(picture)) for picture in batch]
        settings = batch[0].settings
        self.metrics.batch_sizes.observe(len(batch))
        try:
            images = generate_batch(
                self.pipe, requests, settings, self.batch_size, lambda step: self._after(step, batch), "off", prepared
            )
            for image, picture in zip(images, batch, strict=True):
                image.info[PNG_KEY] = describe(self.pipe, picture.request, settings)
        except Exception as error:  # of any picture: damaged weights, memory
            if len(batch) == 1 or isinstance(error, Abandoned | ApiError):
                for picture in batch:
                    _answer(picture, error)
                return
            half = len(batch) // 2
            self._draw(batch[:half])
            self._draw(batch[half:])
            return
        for image, picture in zip(images, batch, strict=True):
            self.metrics.seconds.observe(time.perf_counter() - picture.since)
            self.metrics.pictures.inc()
            _answer(picture, image)

    def _after(self, step: DenoisingStep, batch: Sequence[Picture]) -> None:
        """Send the previews of a step.

        Raises Abandoned if nobody waits for a picture of the batch, and ApiError if the engine can't wait for it.
        """
        if all(picture.abandoned for picture in batch):
            raise Abandoned
        if self._late:
            raise _stopping()
        asked = {place: batch[i] for place, i in enumerate(step.indices) if step.step in batch[i].previews}
        if not asked:
            return
        images = step.decode()
        for place, picture in asked.items():
            picture.on_preview(picture.previews.index(step.step), images[place])


def _answer(picture: Picture, answer: Image.Image | Exception) -> None:
    """Give a picture its image or exception, unless it has been refused since."""
    with contextlib.suppress(InvalidStateError):
        if isinstance(answer, Exception):
            picture.future.set_exception(answer)
        else:
            picture.future.set_result(answer)


def _stopping() -> ApiError:
    return ApiError(503, "stopping", "the server is stopping", BUSY_SECONDS)


def _use(picture: Picture) -> tuple[tuple[str, float], ...]:
    """Return a name for the prepared adapter of a picture: files of one name may differ from one moment to the next."""
    return ((f"{id(picture.adapter)}", picture.adapter.strength),) if picture.adapter else ()


def preview_steps(count: int, steps: int) -> tuple[int, ...]:
    """Return after which of the steps to show previews: evenly spaced, without the last step."""
    found = {round(steps * number / (count + 1)) for number in range(1, count + 1)}
    return tuple(sorted(found - {0, steps}))


def failure(error: BaseException) -> ApiError:
    """Return the error to answer with for an exception of a drawn picture."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return ApiError(503, "out_of_memory", "not enough memory; ask for fewer or smaller pictures", BUSY_SECONDS)
    if isinstance(error, UserError):
        return ApiError(422, "not_drawable", str(error))
    return ApiError(500, "internal_error", "the picture could not be drawn")
