"""Noisy latents and what a denoiser should predict for them, by the noise process of the base model."""

from typing import NamedTuple

import torch
from torch import Tensor

from hra_diffusion.models.flow import FlowProcess
from hra_diffusion.models.noise import NoiseProcess
from training import objective
from training.config import TrainConfig
from training.errors import TrainingError


class Noised(NamedTuple):
    """Noisy latents (B, C, h, w), their timesteps (B,) as the denoiser takes them, and its target (B, C, h, w)."""

    latents: Tensor
    times: Tensor
    target: Tensor


def noised(
    process: NoiseProcess | FlowProcess, latents: Tensor, noise: Tensor, timesteps: Tensor, added: Tensor
) -> Noised:
    """Return latents (B, C, h, w) with the noise ``added`` at timesteps (B,); the target is that of ``noise``."""
    if isinstance(process, FlowProcess):
        sigmas = _sigmas(process, latents, timesteps)
        times = sigmas * process.timesteps
        return Noised(objective.flow_latents(latents, added, sigmas), times, objective.flow_target(latents, noise))
    alphas = process.alphas_cumprod
    target = objective.prediction_target(latents, noise, timesteps, alphas, process.prediction_type)
    return Noised(objective.add_noise(latents, added, timesteps, alphas), timesteps, target)


def signal_levels(process: NoiseProcess | FlowProcess, latents: Tensor) -> Tensor:
    """Return ᾱ (T,) of each timestep for latents of this size; in flow matching, that of the same signal to noise."""
    if isinstance(process, FlowProcess):
        sigmas = _sigmas(process, latents, torch.arange(process.timesteps))
        return (1 - sigmas).square() / ((1 - sigmas).square() + sigmas.square())
    return process.alphas_cumprod


def require_weighting(config: TrainConfig, process: NoiseProcess | FlowProcess) -> None:
    """Raise TrainingError for a weighting by SNR with flow matching, which has none."""
    given = [name for name in ("min_snr_gamma", "debiased_estimation") if getattr(config, name)]
    if given and isinstance(process, FlowProcess):
        raise TrainingError(
            f"{given[0]} does not apply: {config.base} is trained by flow matching, without a weighting by SNR; leave "
            "it out, or use --timestep-sampling to choose which noise levels count more"
        )


def _sigmas(process: FlowProcess, latents: Tensor, timesteps: Tensor) -> Tensor:
    return objective.flow_sigmas(timesteps, process.timesteps, process.shift_for(*latents.shape[-2:]))
