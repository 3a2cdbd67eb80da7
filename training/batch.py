"""The batches of a run: everything that is sampled, prepared on the CPU.

A batch depends only on the seed and its position, and all batches of a run have the same shapes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hra_diffusion.models.families import Text
from training import objective
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
    """

    latents: Tensor
    timesteps: Tensor
    text: Text
    target: Tensor
    weights: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in a fixed order."""
        return [self.latents, self.timesteps, self.target, self.weights, *self.text.values()]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with ``function`` applied to every tensor."""
        text = {key: function(value) for key, value in self.text.items()}
        return Batch(
            function(self.latents), function(self.timesteps), text, function(self.target), function(self.weights)
        )


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
    generator = objective.seeded_generator(config.seed, "noise", position)
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = objective.sample_timesteps(len(latents), len(alphas), config.timestep_bias, generator)
    target = objective.prediction_target(latents, noise, timesteps, alphas, kind)
    weights = objective.min_snr_weights(timesteps, alphas, config.min_snr_gamma, kind, config.min_snr_formula)
    batch = Batch(objective.add_noise(latents, noise, timesteps, alphas), timesteps, text, target, weights)
    if session.class_captions is None:
        return batch
    _, class_text = session.class_captions.batch(config.batch_size, position, config.seed, "photos")
    return with_class_captions(batch, class_text)


def with_class_captions(batch: Batch, text: Text) -> Batch:
    """Return a batch of twice the size, whose second half has this text and is otherwise the same."""
    twice = batch.map(lambda tensor: torch.cat([tensor, tensor]))
    return replace(twice, text={key: torch.cat([value, text[key]]) for key, value in batch.text.items()})
