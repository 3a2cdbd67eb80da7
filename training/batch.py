"""The batches of a run: everything that is sampled, prepared on the CPU.

A batch depends only on the seed and its position, and all batches of a run have the same shapes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hra_diffusion.models.families import Text
from training import objective
from training.config import TrainConfig
from training.session.state import Session


@dataclass(frozen=True)
class Batch:
    """B samples of a training step, class images or class captions included.

    Attributes:
        latents: noisy latents (B, C, h, w).
        timesteps: their timesteps (B,).
        text: token ids or embeddings, and time ids for SDXL (see ``families``).
        target: what the UNet should predict (B, C, h, w).
        weights: weight of each sample in the loss (B,).
        thresholds: threshold of the Huber loss for each sample (B,).
    """

    latents: Tensor
    timesteps: Tensor
    text: Text
    target: Tensor
    weights: Tensor
    thresholds: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in a fixed order."""
        return [self.latents, self.timesteps, self.target, self.weights, self.thresholds, *self.text.values()]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with ``function`` applied to every tensor."""
        latents, timesteps, target, weights, thresholds, *text = map(function, self.tensors)
        return Batch(latents, timesteps, dict(zip(self.text, text, strict=True)), target, weights, thresholds)


def make_batches(session: Session, step: int) -> list[Batch]:
    """Return the batches of optimiser step ``step``, counted from 0: one per accumulated gradient. Pinned for CUDA."""
    count = session.config.gradient_accumulation_steps
    batches = [make_batch(session, step * count + micro) for micro in range(count)]
    if session.accelerator.device.type == "cuda":
        return [batch.map(Tensor.pin_memory) for batch in batches]
    return batches


def make_batch(session: Session, position: int) -> Batch:
    """Return this process's batch number ``position``."""
    config, accelerator = session.config, session.accelerator
    position = position * accelerator.num_processes + accelerator.process_index
    batches = [session.photos.batch(config.batch_size, position, config.seed, "photos")]
    if session.class_images is not None:
        batches.append(session.class_images.batch(config.batch_size, position, config.seed, "class"))
    latents = torch.cat([latents for latents, _ in batches])
    text = {key: torch.cat([text[key] for _, text in batches]) for key in batches[0][1]}
    alphas, kind = session.noise_process.alphas_cumprod, session.noise_process.prediction_type
    noise, generator = make_noise(latents.shape, config, position)
    timesteps = objective.sample_timesteps(len(latents), len(alphas), config, generator)
    target = objective.prediction_target(latents, noise, timesteps, alphas, kind)
    if config.input_perturbation:
        more = torch.randn(latents.shape, generator=objective.seeded_generator(config.seed, "perturbation", position))
        noise = noise + config.input_perturbation * more  # arXiv 2301.11706: not in the target
    batch = Batch(
        objective.add_noise(latents, noise, timesteps, alphas), timesteps, text, target,
        loss_weights(config, timesteps, alphas, kind),
        objective.huber_thresholds(timesteps, alphas, config.huber_c, config.huber_schedule),
    )  # fmt: skip
    if session.class_captions is None:
        return batch
    _, class_text = session.class_captions.batch(config.batch_size, position, config.seed, "photos")
    return with_class_captions(batch, class_text)


def with_class_captions(batch: Batch, text: Text) -> Batch:
    """Return a batch of twice the size, whose second half has this text and is otherwise the same."""
    twice = batch.map(lambda tensor: torch.cat([tensor, tensor]))
    return replace(twice, text={key: torch.cat([value, text[key]]) for key, value in batch.text.items()})


def make_noise(shape: torch.Size, config: TrainConfig, position: int) -> tuple[Tensor, torch.Generator]:
    """Return the noise (B, C, h, w) of a batch, and the generator that draws its timesteps next."""
    generator = objective.seeded_generator(config.seed, "noise", position)
    noise = torch.randn(shape, generator=generator)
    shaping = objective.seeded_generator(config.seed, "low frequencies", position)
    if config.noise_offset:
        noise = objective.offset_noise(noise, config.noise_offset, shaping)
    if config.multires_noise_iterations:
        levels, discount = config.multires_noise_iterations, config.multires_noise_discount
        noise = objective.multires_noise(noise, levels, discount, shaping)
    return noise, generator


def loss_weights(config: TrainConfig, timesteps: Tensor, alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """Return the weight of each sample (B,): debiased estimation, min-SNR, or 1."""
    if config.debiased_estimation:
        return objective.debiased_weights(timesteps, alphas_cumprod, prediction_type)
    return objective.min_snr_weights(
        timesteps, alphas_cumprod, config.min_snr_gamma, prediction_type, config.min_snr_formula
    )
