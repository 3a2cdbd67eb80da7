"""Progress and previews: a callback after every denoising step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor

from hra_diffusion.models import families
from hra_diffusion.threads import share_cores

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class DenoisingStep:
    """A finished denoising step of one batch: number ``step`` of ``steps``."""

    step: int
    steps: int
    indices: tuple[int, ...]
    """Indices of the batch's requests."""
    decode: Callable[[], list[Image.Image]]
    """Decode the current, still noisy latents into one image per request. Costs a VAE pass."""


OnStep = Callable[[DenoisingStep], None]


def step_callback(on_step: OnStep | None, indices: tuple[int, ...]) -> Any:
    """Return a ``callback_on_step_end`` that calls ``on_step`` and follows changes of the shared CPU cores."""

    def after_step(pipe: StableDiffusionPipeline, number: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict:
        share_cores()
        if on_step is not None:
            latents = tensors["latents"].detach().clone()
            on_step(DenoisingStep(number + 1, pipe.num_timesteps, indices, lambda: _decode(pipe, latents)))
        return {}

    return after_step


def _decode(pipe: StableDiffusionPipeline, latents: Tensor) -> list[Image.Image]:
    with torch.no_grad():
        pixels = families.of(pipe).decode(pipe, latents)
    return cast(list[Image.Image], pipe.image_processor.postprocess(pixels.float().cpu(), "pil"))
