"""The DreamBooth objective as pure functions: timesteps, noise, target, weighting, prior loss.

Sources: DreamBooth, arXiv 2208.12242; min-SNR weighting, arXiv 2303.09556; v-prediction, arXiv 2202.00512.
"""

import hashlib

import torch
from torch import Tensor


def stream(seed: int, *labels: object) -> torch.Generator:
    """A random generator (on the CPU) of its own for every purpose and step, so that a resumed run draws the same."""
    digest = hashlib.sha256("/".join(map(str, (seed, *labels))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def batch_indices(count: int, batch_size: int, position: int, seed: int, label: str = "photos") -> list[int]:
    """Which of ``count`` examples make up batch number ``position`` of an endless stream of shuffled epochs."""
    picks = range(position * batch_size, (position + 1) * batch_size)
    orders = {p // count: None for p in picks}
    orders = {epoch: torch.randperm(count, generator=stream(seed, label, epoch)).tolist() for epoch in orders}
    return [orders[p // count][p % count] for p in picks]


def sample_timesteps(count: int, total: int, power: float, generator: torch.Generator) -> Tensor:
    """``count`` of ``total`` timesteps (B,): evenly at a power of 1, more often noisy ones below it."""
    even = torch.rand(count, generator=generator, device=generator.device)
    return (total * even.pow(power)).long().clamp(max=total - 1)


def noisy(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """``√ᾱ_t x + √(1 − ᾱ_t) ε`` for latents and noise (B, C, h, w), timesteps (B,)."""
    alpha, sigma = _signal_and_noise(timesteps, alphas_cumprod)
    return alpha * latents + sigma * noise


def target(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """What the UNet should predict: the noise, the velocity ``√ᾱ ε − √(1 − ᾱ) x``, or the sample."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    if prediction_type == "v_prediction":
        alpha, sigma = _signal_and_noise(timesteps, alphas_cumprod)
        return alpha * noise - sigma * latents
    raise ValueError(f"the base's scheduler predicts {prediction_type!r}; known: epsilon, v_prediction, sample")


def min_snr_weights(
    timesteps: Tensor, alphas_cumprod: Tensor, gamma: float, prediction_type: str, formula: str = "standard"
) -> Tensor:
    """Min-SNR loss weight of each sample (B,), after arXiv 2303.09556, section 3.4; ones for γ = 0.

    ``min(SNR, γ)`` for sample prediction, ``min(SNR, γ) / SNR`` for noise, ``min(SNR, γ) / (SNR + 1)`` for velocity.
    The formula "plus-one" is not the paper's: it weighs a velocity by ``(min(SNR, γ) + 1) / (SNR + 1)``, which is 1
    instead of 0 at pure noise, where a base with zero terminal SNR settles the composition.
    """
    if not gamma:
        return torch.ones(timesteps.shape, device=timesteps.device)
    alpha = alphas_cumprod.to(timesteps.device)[timesteps].float()
    snr = alpha / (1 - alpha)
    if prediction_type == "v_prediction":
        offset = 1 if formula == "plus-one" else 0
        return (snr.clamp(max=gamma) + offset) / (snr + 1)
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    return snr.clamp(max=gamma)


def denoising_loss(
    prediction: Tensor, wanted: Tensor, weights: Tensor, classes: int, prior_loss_weight: float
) -> Tensor:
    """Weighted mean squared error in float32; the last ``classes`` samples are class images, weighed as the prior."""
    errors = (prediction.float() - wanted.float()).square().mean(dim=(1, 2, 3)) * weights
    if not classes:
        return errors.mean()
    return errors[:-classes].mean() + prior_loss_weight * errors[-classes:].mean()


def learning_rate_factor(step: int, steps: int, warmup: int, schedule: str) -> float:
    """The learning rate of step ``step`` (from 0) as a part of the full one."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return 1 - progress
    if schedule == "cosine":
        return float(0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress))))
    return 1.0


def _signal_and_noise(timesteps: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    alpha = alphas_cumprod.to(timesteps.device)[timesteps].float()[:, None, None, None]
    return alpha.sqrt(), (1 - alpha).sqrt()
