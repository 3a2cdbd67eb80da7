"""Generation requests and settings, with defaults from the base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hra_diffusion.adapters.state import ActiveAdapters, Fusion
from hra_diffusion.errors import UserError
from hra_diffusion.generation.schedulers import DEFAULT, scheduler_name, scheduler_names
from hra_diffusion.models import families, prompts
from hra_diffusion.models.sources import TOYBOX
from hra_diffusion.pipeline import base_name_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

GUIDANCE_SCALE = {TOYBOX: 3.0}
"""Default guidance scale of base models that differ from their family's."""
SIZE_CONDITIONING = ("original_size", "crops_coords_top_left", "target_size")
Pair = tuple[int, int]


@dataclass(frozen=True)
class Settings:
    """Settings shared by all images of one call. None stands for the base model's default.

    ``scheduler`` is a name in schedulers.SCHEDULERS, which samples with the noise process of the pipeline's scheduler;
    None, or the class name of the pipeline's own scheduler, samples with that one as it is.

    ``width`` and ``height`` are in pixels. Size conditioning of Stable Diffusion XL is named and ordered as in
    diffusers' pipeline: ``original_size`` and ``target_size`` (height, width) default to the image's size,
    ``crops_coords_top_left`` (top, left) to (0, 0).
    """

    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = DEFAULT
    width: int | None = None
    height: int | None = None
    original_size: Pair | None = None
    crops_coords_top_left: Pair | None = None
    target_size: Pair | None = None


@dataclass(frozen=True)
class FullSettings:
    """Settings with the base model's defaults filled in.

    ``scheduler`` is a name in schedulers.SCHEDULERS, or the class name of the pipeline's own scheduler. Size
    conditioning is None if the base model takes none.
    """

    steps: int
    guidance_scale: float
    scheduler: str
    width: int
    height: int
    original_size: Pair | None = None
    crops_coords_top_left: Pair | None = None
    target_size: Pair | None = None


@dataclass(frozen=True)
class Request:
    """One image to generate.

    ``adapters`` are (name, strength) pairs in the order of application, empty for the base model; ``fusion`` is how
    several act together (see ``pipeline.activate``). The initial noise depends on ``seed`` alone. Raises UserError if
    the seed is out of range.
    """

    prompt: str
    seed: int
    adapters: ActiveAdapters = ()
    negative_prompt: str = ""
    fusion: Fusion = "compose"

    def __post_init__(self):
        if not 0 <= self.seed < 2**63:
            raise UserError(f"a seed must be from 0 to 2^63 − 1, not {self.seed}")


def complete_settings(pipe: StableDiffusionPipeline, settings: Settings | FullSettings) -> FullSettings:
    """Fill in the base model's image size, steps and guidance scale where none are given.

    Raises UserError if the settings are invalid or do not suit the base model.
    """
    side = families.default_side(pipe)
    steps, guidance_scale = families.of(pipe).sampling_defaults(pipe)
    guidance_scale = GUIDANCE_SCALE.get(base_name_of(pipe), guidance_scale)
    full = FullSettings(
        steps if settings.steps is None else settings.steps,
        guidance_scale if settings.guidance_scale is None else settings.guidance_scale,
        scheduler_name(pipe, settings.scheduler),
        settings.width or side,
        settings.height or side,
        **_size_conditioning(pipe, settings, (settings.height or side, settings.width or side)),
    )
    _check(pipe, full)
    return full


def prompt_notes(pipe: StableDiffusionPipeline, requests: Sequence[Request]) -> list[str]:
    """Return notes on the requests' prompts (see prompts.prompt_notes), without repetitions."""
    texts = dict.fromkeys(text for request in requests for text in (request.prompt, request.negative_prompt))
    if families.of(pipe).embeddings_type is None:  # without weights and further windows
        cut = [words for text in texts if (words := families.cut_off(pipe, text))]
        return [f"the prompt is longer than the text encoder reads; these words have no effect: “{w}”" for w in cut]
    tokenizer = families.tokenizer(pipe)
    return list(dict.fromkeys(note for text in texts for note in prompts.prompt_notes(tokenizer, text)))


def _check(pipe: StableDiffusionPipeline, settings: FullSettings) -> None:
    if settings.scheduler not in (known := scheduler_names(pipe)):
        raise UserError(f"unknown scheduler {settings.scheduler!r}; use one of {', '.join(known)}")
    if settings.scheduler == "euler-a" and families.noise_process(pipe).prediction_type == "sample":
        raise UserError("euler-a does not support base models that predict the sample; use another one, such as euler")
    if not 1 <= settings.steps <= 1000:
        raise UserError(f"steps must be from 1 to 1000, not {settings.steps}")
    if settings.guidance_scale > 1 and not families.of(pipe).takes_guidance(pipe):
        raise UserError("this base is distilled and takes no guidance; leave out the guidance scale (--guidance-scale)")
    multiple, most = families.side_limits(pipe)
    for side in (settings.width, settings.height):
        if side % multiple or not multiple <= side <= most:
            raise UserError(f"width and height must be multiples of {multiple} up to {most} for this base, not {side}")


def _size_conditioning(pipe: StableDiffusionPipeline, settings: Settings | FullSettings, size: Pair) -> dict[str, Pair]:
    """Return the size conditioning for an image of this size (height, width); {} if the base model takes none."""
    given = {name: tuple(value) for name in SIZE_CONDITIONING if (value := getattr(settings, name)) is not None}
    if not families.size_conditioned(families.denoiser(pipe).config):
        if given:
            raise UserError(f"{base_name_of(pipe)} is not conditioned on sizes; only SDXL takes {', '.join(given)}")
        return {}
    for name, numbers in given.items():
        least = 0 if name == "crops_coords_top_left" else 1
        if min(numbers) < least:
            raise UserError(f"{name} must be two numbers from {least} up, not {numbers[0]} and {numbers[1]}")
    return {"original_size": size, "crops_coords_top_left": (0, 0), "target_size": size} | given
