"""What the Generate tab asks for: reading its values, filling them in from a PNG, and generating the images."""

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from app.inference_session import Preview
from app.web.compare_plan import insert_placeholder
from app.web.context import AppContext
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.errors import UserError
from hra_diffusion.generation.previews import OnStep
from hra_diffusion.generation.requests import SIZE_CONDITIONING, Settings
from hra_diffusion.generation.sampling import generate
from hra_diffusion.generation.schedulers import SCHEDULERS
from hra_diffusion.generation.subjects import with_subject

MAX_ADAPTERS, MAX_IMAGES, MAX_SIDE = 4, 8, 2048


@dataclass(frozen=True)
class GenerationRequest:
    """The tab's values, by name."""

    adapters: Sequence[str]
    prompt: str
    count: int
    seed: int
    lock: bool
    negative: str
    steps: int
    guidance: float | None
    scheduler: str
    width: int | None
    height: int | None
    strengths: Sequence[float]

    @property
    def settings(self) -> Settings:
        """Settings shared by all images."""
        width, height = (int(side) if side else None for side in (self.width, self.height))
        return Settings(int(self.steps), self.guidance or None, self.scheduler, width, height)


def read_request(values: Sequence[Any]) -> GenerationRequest:
    """Read the tab's values. Without a locked seed, or with −1 as in other programs, the seed is random.

    Raises UserError for values that are too large. (Gradio's own limits would refuse them without a message.)
    """
    adapters, prompt, count, seed, lock, negative, steps, guidance, scheduler, width, height, *strengths = values
    if max(width or 0, height or 0) > MAX_SIDE:
        raise UserError(f"width and height are at most {MAX_SIDE} pixels here")
    if (seed or 0) >= 2**63:
        raise UserError(f"the seed {seed} is too large; the largest is {2**63 - 1}")
    seed = int(seed or 0) if lock and (seed or 0) >= 0 else random.randrange(2**31)
    return GenerationRequest(
        adapters or [], prompt or "", min(int(count), MAX_IMAGES), seed, lock, negative or "", steps, guidance,
        scheduler, width, height, strengths,
    )  # fmt: skip


def resolve_prompt(context: AppContext, adapters: Sequence[str] | None, prompt: str) -> str:
    """Return the prompt with each adapter's subject in it."""
    for key in adapters or ():
        prompt = with_subject(prompt or "", *context.subject_of(key))
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
            session.pipe, prompt, strengths, request.seed, request.count, request.settings, request.negative,
            on_step=on_step,
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
        gr.Warning(f"This picture was made with {', '.join(missing)}, which is not in the library.")
    size = [saved["height"], saved["width"]]
    defaults = dict(zip(SIZE_CONDITIONING, (size, [0, 0], size), strict=True))
    if others := [name for name in defaults if saved.get(name, defaults[name]) != defaults[name]]:
        gr.Warning(f"This picture was made with another {', '.join(others)}; only the command line can set it.")
    if (scheduler := saved["scheduler"]) not in SCHEDULERS:
        gr.Warning(
            f"This picture was made with a pipeline's own {scheduler}, which is not in the list; dpm++ is filled in."
        )
        scheduler = "dpm++"
    sliders = [*strengths.values(), *[1.0] * MAX_ADAPTERS][:MAX_ADAPTERS]
    return [
        list(strengths), saved["prompt"], 1, saved["seed"], True, saved["negative_prompt"], saved["steps"],
        saved["guidance_scale"], scheduler, saved["width"], saved["height"], *sliders, list(strengths),
    ]  # fmt: skip


def without_adapters(context: AppContext, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings recorded in a PNG without adapters, and ``{subject}`` for the first one's subject."""
    first = next(iter(adapter_strengths(context, saved)), None)
    prompt = insert_placeholder(saved["prompt"], read_info(context.adapter_path(first))) if first else saved["prompt"]
    return {**saved, "adapters": {}, "prompt": prompt}
