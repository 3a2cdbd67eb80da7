"""Progress and previews: a callback after every denoising step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor

from hra_diffusion.generation.requests import FullSettings
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


def step_callback(on_step: OnStep | None, indices: tuple[int, ...], settings: FullSettings) -> Any:
    """Return a ``callback_on_step_end`` that calls ``on_step`` and follows changes of the shared CPU cores."""

    def after_step(pipe: StableDiffusionPipeline, number: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict:
        share_cores()
        if on_step is not None:
            latents = tensors["latents"].detach().clone()
            on_step(DenoisingStep(number + 1, pipe.num_timesteps, indices, lambda: _decode(pipe, latents, settings)))
        return {}

    return after_step


def _decode(pipe: StableDiffusionPipeline, latents: Tensor, settings: FullSettings) -> list[Image.Image]:
    if latents.ndim == 3:  # some transformers take a sequence of positions (N, height · width, channels)
        side = families.latent_pixels(pipe)
        latents = latents.mT.unflatten(-1, (settings.height // side, settings.width // side))
    with torch.no_grad():
        pixels = families.of(pipe).decode(pipe, latents)
    return cast(list[Image.Image], pipe.image_processor.postprocess(pixels.float().cpu(), "pil"))
