"""What the Generate tab asks for: reading its values, filling them in from a PNG, and generating the images."""

import dataclasses
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from PIL import Image
from pydantic import Field

from app.inference_session import Preview
from app.web.compare_plan import insert_placeholder
from app.web.context import AppContext
from app.web.events import say
from app.web.values import Flag, Keys, Number, Scheduler, Seed, Steps, Strength, Text, Whole, row
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.adapters.state import Fusion
from hra_diffusion.errors import UserError
from hra_diffusion.generation.previews import OnStep
from hra_diffusion.generation.requests import SIZE_CONDITIONING, Settings
from hra_diffusion.generation.sampling import generate
from hra_diffusion.generation.schedulers import DEFAULT, SCHEDULERS
from hra_diffusion.generation.subjects import with_subject

MAX_ADAPTERS, MAX_IMAGES, MAX_SIDE = 4, 8, 2048


Side = Annotated[Whole, Field(ge=0)]


@dataclass(frozen=True)
class GenerationRequest:
    """The tab's values, by name. Steps, widths, heights and guidance of 0 or None mean the base model's default."""

    adapters: Annotated[Keys, Field(max_length=MAX_ADAPTERS)]
    prompt: Text
    count: Annotated[Whole, Field(ge=1, le=MAX_IMAGES)]
    seed: Seed | None
    lock: Flag
    negative: Text
    steps: Steps | None
    guidance: Annotated[Number, Field(ge=0, le=100)] | None
    scheduler: Scheduler
    width: Side | None
    height: Side | None
    fusion: Fusion
    strengths: tuple[Strength, ...]

    @property
    def settings(self) -> Settings:
        """Settings shared by all images."""
        return Settings(
            self.steps or None, self.guidance or None, self.scheduler, self.width or None, self.height or None
        )


def read_request(values: Sequence[Any]) -> GenerationRequest:
    """Read the tab's values. Without a locked seed, or with −1 as in other programs, the seed is random.

    Raises UserError for values of other types, or too large.
    """
    request = row(GenerationRequest, values)
    if max(request.width or 0, request.height or 0) > MAX_SIDE:
        raise UserError(f"width and height are at most {MAX_SIDE} pixels here")
    seed = request.seed or 0
    return dataclasses.replace(request, seed=seed if request.lock and seed >= 0 else random.randrange(2**31))


def resolve_prompt(context: AppContext, adapters: Sequence[str] | None, prompt: str) -> str:
    """Return the prompt with each adapter's subject in it."""
    for key in adapters or ():
        prompt = with_subject(prompt or "", *context.subject_of(key, prompt or ""))
    return prompt or ""


def generate_images(
    context: AppContext, request: GenerationRequest, cancel: threading.Event
) -> Iterator[tuple[Mapping[int, Image.Image], float]]:
    """Yield (previews by index, fraction done), then the finished images with 1.0."""
    session, prompt = context.session, resolve_prompt(context, request.adapters, request.prompt)
    if not prompt.strip():
        raise UserError("Write a prompt first, such as “a photo of a dog in the snow”.")

    def run(on_step: OnStep) -> list[Image.Image]:
        infos = session.load_adapters([context.adapter_path(key) for key in request.adapters])
        strengths = {info.name: strength for info, strength in zip(infos, request.strengths, strict=False)}
        return generate(
            session.pipe, prompt, strengths, request.seed or 0, request.count, request.settings, request.negative,
            on_step=on_step, fusion=request.fusion,
        )  # fmt: skip

    for update in session.watch(run, request.count, cancel):
        if isinstance(update, Preview):
            yield update.images, min(update.progress, 0.99)
        else:
            yield dict(enumerate(update.value)), 1.0


def adapter_strengths(context: AppContext, saved: Mapping[str, Any]) -> dict[str, float]:
    """Return the strengths recorded in a PNG, by key, of the adapters that still exist."""
    known = dict(context.adapter_choices())
    return {known[name]: strength for name, strength in saved["adapters"].items() if name in known}


def values_from_settings(context: AppContext, saved: Mapping[str, Any]) -> list[Any]:
    """Return the settings recorded in a PNG as values of ``GenerateTab.filled``, the seed locked."""
    known, strengths = {name for name, _ in context.adapter_choices()}, adapter_strengths(context, saved)
    if missing := [name for name in saved["adapters"] if name not in known]:
        say(f"This picture was made with {', '.join(missing)}, which is not in the library.", warning=True)
    size = [saved["height"], saved["width"]]
    defaults = dict(zip(SIZE_CONDITIONING, (size, [0, 0], size), strict=True))
    if others := [name for name in defaults if saved.get(name, defaults[name]) != defaults[name]]:
        say(f"This picture was made with another {', '.join(others)}; only the command line can set it.", warning=True)
    if (scheduler := saved["scheduler"]) not in SCHEDULERS:
        own = f"This picture was made with a pipeline's own {scheduler}, which is not in the list"
        say(f"{own}; {DEFAULT} is filled in.", warning=True)
        scheduler = DEFAULT
    sliders = [*strengths.values(), *[1.0] * MAX_ADAPTERS][:MAX_ADAPTERS]
    return [
        list(strengths), saved["prompt"], 1, saved["seed"], True, saved["negative_prompt"], saved["steps"],
        saved["guidance_scale"], scheduler, saved["width"], saved["height"],
        saved.get("fusion", "compose"), *sliders, list(strengths),
    ]  # fmt: skip


def without_adapters(context: AppContext, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings recorded in a PNG without adapters, and ``{subject}`` for the first one's subject."""
    first = next(iter(adapter_strengths(context, saved)), None)
    prompt = insert_placeholder(saved["prompt"], read_info(context.adapter_path(first))) if first else saved["prompt"]
    return {**saved, "adapters": {}, "prompt": prompt}
