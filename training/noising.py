"""Noisy latents and what a denoiser should predict for them, by the noise process of the base model."""

from typing import NamedTuple

from torch import Tensor

from hra_diffusion.models.noise import NoiseProcess
from training import objective


class Noised(NamedTuple):
    """Noisy latents (B, C, h, w), their timesteps (B,) as the denoiser takes them, and its target (B, C, h, w)."""

    latents: Tensor
    times: Tensor
    target: Tensor


def noised(process: NoiseProcess, latents: Tensor, noise: Tensor, timesteps: Tensor, added: Tensor) -> Noised:
    """Return latents (B, C, h, w) with the noise ``added`` at timesteps (B,); the target is that of ``noise``."""
    alphas = process.alphas_cumprod
    target = objective.prediction_target(latents, noise, timesteps, alphas, process.prediction_type)
    return Noised(objective.add_noise(latents, added, timesteps, alphas), timesteps, target)
