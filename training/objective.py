"""The DreamBooth objective as pure functions: timesteps, noise, target, weighting, prior loss.

Sources: DreamBooth, arXiv 2208.12242; v-prediction, arXiv 2202.00512; rectified flow, arXiv 2403.03206.
kohya-ss/sd-scripts is read at 48d368fa.
"""

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.settings.objective import ObjectiveSettings

MAX_SNR = 1000
"""SNR at which debiased estimation stops lowering the weight, as in sd-scripts."""


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


def sample_timesteps(count: int, total: int, settings: ObjectiveSettings, generator: torch.Generator) -> Tensor:
    """Sample ``count`` timesteps (B,) below ``total``, from ``min_timestep`` up to but not including ``max_timestep``.

    A higher timestep is noisier. Every distribution takes one uniform number per sample.
    """
    uniform = torch.rand(count, generator=generator, device=generator.device)
    first, end = min(settings.min_timestep, total - 1), min(settings.max_timestep, total)
    return (first + (end - first) * timestep_quantiles(uniform, settings)).long().clamp(max=end - 1)


def timestep_quantiles(uniform: Tensor, settings: ObjectiveSettings) -> Tensor:
    """Return the quantiles in [0, 1] of the timestep distribution at ``uniform`` (B,), numbers in [0, 1).

    "power" is ``u^timestep_bias``; at bias 1 it is uniform, and lower values are noisier. "logit-normal", "mode" and
    "cosine-map" are those of Stable Diffusion 3 (arXiv 2403.03206, section 3.1), with 1 as pure noise.
    """
    kind = settings.timestep_sampling
    if kind == "power":
        return uniform.pow(settings.timestep_bias)
    if kind == "logit-normal":
        return torch.sigmoid(settings.logit_mean + settings.logit_std * torch.special.ndtri(uniform))
    if kind == "mode":
        return 1 - uniform - settings.mode_scale * ((math.pi / 2 * uniform).cos().square() - 1 + uniform)
    if kind == "cosine-map":
        return 1 - 1 / ((math.pi / 2 * uniform).tan() + 1)
    return uniform


def offset_noise(noise: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Return noise (B, C, h, w) plus ``scale`` times a normal number per channel.

    Source: https://www.crosslabs.org/blog/diffusion-with-offset-noise.
    """
    return noise + scale * torch.randn(*noise.shape[:2], 1, 1, generator=generator)


def multires_noise(noise: Tensor, iterations: int, discount: float, generator: torch.Generator) -> Tensor:
    """Return noise (B, C, h, w) plus noise of lower resolutions, scaled to unit variance.

    Level i is ``rⁱ`` times smaller, with r drawn from [2, 4), and counts ``discountⁱ``. Source: sd-scripts'
    ``pyramid_noise_like`` (library/custom_train_functions.py).
    """
    size = noise.shape[-2:]
    for level in range(iterations):
        ratio = (2 + 2 * float(torch.rand((), generator=generator))) ** level
        small = [max(1, int(side / ratio)) for side in size]
        coarse = torch.randn(*noise.shape[:2], *small, generator=generator)
        noise = noise + discount**level * F.interpolate(coarse, size, mode="bilinear")
        if 1 in small:
            break
    return noise / noise.std()


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Return ``√ᾱ_t x + √(1 − ᾱ_t) ε`` for latents and noise (B, C, h, w) and timesteps (B,)."""
    alpha, sigma = _signal_and_noise(timesteps, alphas_cumprod)
    return alpha * latents + sigma * noise


def prediction_target(
    latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, prediction_type: str
) -> Tensor:
    """Return what the denoiser should predict: the noise, the velocity ``√ᾱ ε − √(1 − ᾱ) x``, or the sample."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    if prediction_type == "v_prediction":
        alpha, sigma = _signal_and_noise(timesteps, alphas_cumprod)
        return alpha * noise - sigma * latents
    raise ValueError(f"unknown prediction type {prediction_type!r}; known: epsilon, v_prediction, sample")


def flow_sigmas(timesteps: Tensor, total: int, shift: float) -> Tensor:
    """Return the noise level σ (B,) of timesteps (B,) below ``total``; the last, noisiest one has σ = 1.

    It is ``k t / (1 + (k − 1) t)`` for ``t = (timestep + 1) / total`` and the shift k, as in diffusers'
    FlowMatchEulerDiscreteScheduler: a shift above 1 samples noisier levels, for larger images (section 5.3.2).
    """
    times = (timesteps + 1) / total
    return shift * times / (1 + (shift - 1) * times)


def flow_latents(latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Return ``(1 − σ) x + σ ε`` for latents and noise (B, C, h, w) and noise levels (B,)."""
    sigmas = sigmas[:, None, None, None]
    return (1 - sigmas) * latents + sigmas * noise


def flow_target(latents: Tensor, noise: Tensor) -> Tensor:
    """Return what a flow-matching denoiser should predict, ``ε − x``: the derivative of ``flow_latents`` by σ."""
    return noise - latents


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
    snr = _signal_to_noise(timesteps, alphas_cumprod)
    if prediction_type == "v_prediction":
        offset = 1 if formula == "plus-one" else 0
        return (snr.clamp(max=gamma) + offset) / (snr + 1)
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    return snr.clamp(max=gamma)


def debiased_weights(timesteps: Tensor, alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """Return the weights (B,) of debiased estimation, ``1/√SNR`` for epsilon (arXiv 2310.08442).

    For v-prediction ``1/(SNR + 1)``, as in sd-scripts (``apply_debiased_estimation``); for sample prediction ``√SNR``,
    the weight of the same loss for epsilon. The SNR counts as at most ``MAX_SNR``.
    """
    snr = _signal_to_noise(timesteps, alphas_cumprod).clamp(max=MAX_SNR)
    if prediction_type == "v_prediction":
        return 1 / (snr + 1)
    return snr.rsqrt() if prediction_type == "epsilon" else snr.sqrt()


def huber_thresholds(timesteps: Tensor, alphas_cumprod: Tensor, c: float, schedule: str) -> Tensor:
    """Return the threshold of the Huber loss for each sample (B,).

    "exponential" decays from 1 at timestep 0 to ``c`` at pure noise, "snr" is ``(1 − c)/(1 + σ)² + c`` with
    ``σ = √(1/ᾱ − 1)``, and "constant" is ``c``. Sources: arXiv 2403.16728; ``get_huber_threshold_if_needed`` in
    sd-scripts' library/train_util.py.
    """
    if schedule == "exponential":
        return c ** (timesteps / len(alphas_cumprod))
    if schedule == "snr":
        sigma = _signal_to_noise(timesteps, alphas_cumprod).rsqrt()
        return (1 - c) / (1 + sigma).square() + c
    return torch.full(timesteps.shape, c, device=timesteps.device)


def elementwise_errors(prediction: Tensor, target: Tensor, loss_type: str, thresholds: Tensor | None) -> Tensor:
    """Return the error of each element (B, C, h, w) in float32.

    The square d² of the difference, or with the threshold c of each sample "huber" ``2c(√(d² + c²) − c)``, close to d²
    below c and to 2c|d| above; "smooth-l1" is 1/c times it. Source: ``conditional_loss`` in sd-scripts'
    library/train_util.py.
    """
    squares = (prediction.float() - target.float()).square()
    if loss_type == "l2" or thresholds is None:
        return squares
    c = thresholds[:, None, None, None]
    roots = 2 * ((squares + c.square()).sqrt() - c)
    return c * roots if loss_type == "huber" else roots


def denoising_loss(
    prediction: Tensor, target: Tensor, weights: Tensor, classes: int, prior_loss_weight: float,
    loss_type: str = "l2", thresholds: Tensor | None = None, mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the weighted mean error in float32, plus the prior loss of the last ``classes`` samples.

    ``mask`` (B, 1, h, w) multiplies the errors of all channels before their mean.
    """
    elements = elementwise_errors(prediction, target, loss_type, thresholds)
    errors = (elements if mask is None else elements * mask).mean(dim=(1, 2, 3)) * weights
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


def _signal_to_noise(timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    alpha = alphas_cumprod.to(timesteps.device)[timesteps].float()
    return alpha / (1 - alpha)


def _signal_and_noise(timesteps: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    alpha = alphas_cumprod.to(timesteps.device)[timesteps].float()[:, None, None, None]
    return alpha.sqrt(), (1 - alpha).sqrt()
