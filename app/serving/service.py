"""What the server does with a request for pictures, apart from HTTP."""

import io
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from app.serving.engine import Engine, Picture, preview_steps
from app.serving.errors import ApiError
from app.serving.keys import BASE, Key, KeyRing, Usage
from app.serving.pictures import PictureFolder
from app.serving.schemas import ImageRequest
from app.serving.store import AdapterStore, unknown_model
from app.web.drawing_queue import REQUEST_BUDGET
from hra_diffusion.adapters.gathered import PreparedAdapter
from hra_diffusion.errors import UserError
from hra_diffusion.generation.png import write_png
from hra_diffusion.generation.requests import FullSettings, Request, complete_settings
from hra_diffusion.generation.subjects import PLACEHOLDER


@dataclass
class Service:
    """The parts of a server. Its methods may be called from several threads."""

    engine: Engine
    store: AdapterStore
    keys: KeyRing
    pictures: PictureFolder
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        self.engine.metrics.adapters.set_function(lambda: len(self.store))
        self.engine.metrics.adapter_bytes.set_function(lambda: self.store.nbytes)

    def order(self, asked: ImageRequest, key: Key, on_preview: Callable[[int, Image.Image], object]) -> list[Picture]:
        """Check a request, prepare its adapter, queue its pictures, and count them for the key until they are done.

        Raises ApiError: 400 for values that don't suit the base model, 404 for a model that the key may not use, 409
        for a file that can't be used, 413 for a request that is too large, 429 beyond the key's limits, 503 without
        room. A request that is refused does not count.
        """
        if not key.may_use(asked.model):
            raise unknown_model(asked.model)
        settings = self._settings(asked)
        self.engine.require_room(asked.n)
        self.usage.take(key, asked.n)
        try:
            pictures = self._pictures(asked, settings, key, on_preview)
            self.engine.submit(pictures)
        except BaseException:
            self.usage.refund(key, asked.n)
            raise
        for picture in pictures:
            picture.future.add_done_callback(lambda _: self.usage.give_back(key, 1))
        return pictures

    def _settings(self, asked: ImageRequest) -> FullSettings:
        if asked.stream and asked.n > 1:
            raise ApiError(400, "invalid_value", "a stream has one picture; leave n out")
        try:
            settings = complete_settings(self.engine.pipe, asked.settings)
        except UserError as error:
            raise ApiError(400, "invalid_value", str(error)) from None
        if settings.width * settings.height * settings.steps * asked.n > REQUEST_BUDGET:
            raise ApiError(413, "request_too_large", "ask for fewer pictures or steps, or a smaller size")
        return settings

    def _pictures(
        self, asked: ImageRequest, settings: FullSettings, key: Key, on_preview: Callable[[int, Image.Image], object]
    ) -> list[Picture]:
        adapter = None if asked.model == BASE else self.store.get(asked.model, asked.strength)
        prompt, negative = (_with_subject(text, adapter) for text in (asked.prompt, asked.negative_prompt))
        use = ((asked.model, asked.strength),) if adapter else ()
        first = secrets.randbelow(2**31) if asked.seed is None else asked.seed
        previews = preview_steps(asked.partial_images, settings.steps) if asked.stream else ()
        requests = [Request(prompt, first + i, use, negative) for i in range(asked.n)]
        return [Picture(key.name, request, settings, adapter, previews, on_preview) for request in requests]


def _with_subject(prompt: str, adapter: PreparedAdapter | None) -> str:
    if PLACEHOLDER in prompt and not (adapter and adapter.subject):
        raise ApiError(400, "invalid_value", f"{PLACEHOLDER} needs an adapter with a trigger; write the subject out")
    return prompt.replace(PLACEHOLDER, adapter.subject) if adapter else prompt


def png_bytes(image: Image.Image) -> bytes:
    """Return an image as a PNG file, with the settings that it was drawn with, if it has any."""
    file = io.BytesIO()
    write_png(image, file)
    return file.getvalue()
