"""Partial denoising of latents by the base model (as SDEdit does), as training data of the decoder."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from toybox.base import Base, new_scheduler
from toybox.captions import caption_of
from toybox.loop import autocast
from toybox.shards import Shard
from toybox.tokenizer import tokenise


@dataclass(frozen=True)
class PartialDenoising:
    """Settings: range of the first timestep, number of denoising steps, guidance scale, batch size and seed."""

    lowest_start: int = 200
    highest_start: int = 600
    steps: int = 4
    guidance_scale: float = 3.0
    batch: int = 64
    seed: int = 0


@torch.no_grad()
def denoise_partially(base: Base, latents: Shard, tokenizer: CLIPTokenizer, settings: PartialDenoising) -> Tensor:
    """Partially noise latents (N, C, h, w) and denoise them with the base model in a few guided steps.

    The result shows the same content with the base model's own errors, which the decoder learns to correct.
    """
    device, scheduler = next(base.parameters()).device, new_scheduler()
    generator, denoised = torch.Generator().manual_seed(settings.seed), []
    for first in range(0, len(latents.labels), settings.batch):
        part = slice(first, first + settings.batch)
        captions = [caption_of(label) for label in latents.labels[part]]
        tokens = tokenise(tokenizer, captions + [""] * len(captions)).to(device)
        clean = latents.values[part].float()
        start = torch.randint(settings.lowest_start, settings.highest_start, (1,), generator=generator).item()
        timesteps = torch.linspace(start, 0, settings.steps + 1).long().tolist()
        noise = torch.randn(clean.shape, generator=generator)
        noisy = scheduler.add_noise(clean, noise, torch.tensor(timesteps[:1])).to(device)  # pyright: ignore[reportArgumentType]
        denoised.append(_denoise(base, noisy, tokens, timesteps, settings.guidance_scale).half().cpu())
    return torch.cat(denoised)


def _denoise(base: Base, noisy: Tensor, tokens: Tensor, timesteps: list[int], guidance_scale: float) -> Tensor:
    """Denoise latents from the first timestep to the last with DDIM; the second half of ``tokens`` is unconditional."""
    device, alphas = noisy.device, new_scheduler().alphas_cumprod
    for timestep, following in pairwise(timesteps):
        with autocast(device):
            both = base(noisy.repeat(2, 1, 1, 1), torch.full((len(tokens),), timestep, device=device), tokens).float()
        conditional, unconditional = both.chunk(2)
        velocity = unconditional + guidance_scale * (conditional - unconditional)
        # sample and noise from v (Salimans & Ho 2022), then a DDIM step
        alpha, sigma = alphas[timestep].sqrt(), (1 - alphas[timestep]).sqrt()
        sample, noise = alpha * noisy - sigma * velocity, alpha * velocity + sigma * noisy
        noisy = sample
        if following:
            noisy = alphas[following].sqrt() * sample + (1 - alphas[following]).sqrt() * noise
    return noisy
