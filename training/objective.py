"""The DreamBooth objective as pure functions: timesteps, noise, target, weighting, prior loss.

Sources: DreamBooth, arXiv 2208.12242; min-SNR weighting, arXiv 2303.09556; v-prediction, arXiv 2202.00512.
"""

import hashlib

import torch
from torch import Tensor


def seeded_generator(seed: int, *labels: object) -> torch.Generator:
    """Return a CPU generator that depends only on the seed and labels, such as a purpose and a step.

    A resumed run therefore draws the same random numbers as an uninterrupted one.
    """
    return torch.Generator().manual_seed(stable_seed(seed, *labels))


def stable_seed(seed: int, *labels: object) -> int:
    """Return a seed of 63 bits that depends only on the seed and labels."""
    digest = hashlib.sha256("/".join(map(str, (seed, *labels))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def batch_indices(count: int, batch_size: int, position: int, seed: int, label: str = "photos") -> list[int]:
    """Return the indices of batch ``position`` in an endless sequence of shuffled epochs of ``count`` samples."""
    picks = range(position * batch_size, (position + 1) * batch_size)
    epochs = dict.fromkeys(pick // count for pick in picks)
    orders = {e: torch.randperm(count, generator=seeded_generator(seed, label, e)).tolist() for e in epochs}
    return [orders[pick // count][pick % count] for pick in picks]


def sample_timesteps(count: int, total: int, bias: float, generator: torch.Generator) -> Tensor:
    """Sample ``count`` timesteps (B,) below ``total`` as ``total · u^bias`` for uniform ``u``.

    A bias of 1 is uniform; lower values sample noisier timesteps more often.
    """
    uniform = torch.rand(count, generator=generator, device=generator.device)
    return (total * uniform.pow(bias)).long().clamp(max=total - 1)


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Return ``√ᾱ_t x + √(1 − ᾱ_t) ε`` for latents and noise (B, C, h, w) and timesteps (B,)."""
    alpha, sigma = _signal_and_noise(timesteps, alphas_cumprod)
    return alpha * latents + sigma * noise


def prediction_target(
    latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, prediction_type: str
) -> Tensor:
    """Return what the UNet should predict: the noise, the velocity ``√ᾱ ε − √(1 − ᾱ) x``, or the sample."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    if prediction_type == "v_prediction":
        alpha, sigma = _signal_and_noise(timesteps, alphas_cumprod)
        return alpha * noise - sigma * latents
    raise ValueError(f"unknown prediction type {prediction_type!r}; known: epsilon, v_prediction, sample")


def min_snr_weights(
    timesteps: Tensor, alphas_cumprod: Tensor, gamma: float, prediction_type: str, formula: str = "standard"
) -> Tensor:
    """Return the min-SNR loss weight of each sample (B,) (arXiv 2303.09556, section 3.4); ones for γ = 0.

    The weight is ``min(SNR, γ)`` for sample prediction, ``min(SNR, γ) / SNR`` for epsilon and
    ``min(SNR, γ) / (SNR + 1)`` for v-prediction. The formula "plus-one" is not the paper's: its weight for v-prediction
    is ``(min(SNR, γ) + 1) / (SNR + 1)``, which is 1 instead of 0 at pure noise, where a base model with zero terminal
    SNR determines the composition.
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
    prediction: Tensor, target: Tensor, weights: Tensor, classes: int, prior_loss_weight: float,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the weighted mean squared error in float32, plus the prior loss of the last ``classes`` samples.

    ``mask`` (B, 1, h, w) multiplies the errors of all channels before their mean.
    """
    squared = (prediction.float() - target.float()).square()
    errors = (squared if mask is None else squared * mask).mean(dim=(1, 2, 3)) * weights
    if not classes:
        return errors.mean()
    return errors[:-classes].mean() + prior_loss_weight * errors[-classes:].mean()


def learning_rate_factor(step: int, steps: int, warmup: int, schedule: str) -> float:
    """Return the factor of the learning rate at ``step``, counted from 0, out of ``steps``."""
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
