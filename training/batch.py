"""The batches of a run: everything that is sampled, prepared on the CPU.

A batch depends only on the seed and its position. All batches of a step have the same shapes, in all processes: their
photos are from one bucket.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hra_diffusion.models.families import Text
from training import objective
from training.data.latent_cache import Examples
from training.session.state import Session


@dataclass(frozen=True)
class Batch:
    """B samples of a training step, class images included.

    Attributes:
        latents: noisy latents (B, C, h, w).
        timesteps: their timesteps (B,).
        text: token ids or embeddings, and time ids for SDXL (see ``families``).
        target: what the UNet should predict (B, C, h, w).
        weights: weight of each sample in the loss (B,).
        mask: weight of each latent position in the loss (B, 1, h, w), or None.
    """

    latents: Tensor
    timesteps: Tensor
    text: Text
    target: Tensor
    weights: Tensor
    mask: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in a fixed order."""
        mask = [] if self.mask is None else [self.mask]
        return [self.latents, self.timesteps, self.target, self.weights, *mask, *self.text.values()]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with ``function`` applied to every tensor."""
        text = {key: function(value) for key, value in self.text.items()}
        mask = None if self.mask is None else function(self.mask)
        return Batch(
            function(self.latents), function(self.timesteps), text, function(self.target), function(self.weights), mask
        )


def make_batches(session: Session, step: int) -> list[Batch]:
    """Return the batches of optimiser step ``step``, counted from 0: one per accumulated gradient. Pinned for CUDA."""
    batches = [make_batch(session, step, micro) for micro in range(session.config.gradient_accumulation_steps)]
    if session.accelerator.device.type == "cuda":
        return [batch.map(Tensor.pin_memory) for batch in batches]
    return batches


def bucket_of_step(counts: Sequence[int], step: int, seed: int) -> tuple[int, int]:
    """Return the bucket that all batches of a step come from, and the number of earlier steps with the same one.

    ``counts`` are the numbers of photos per bucket. As many consecutive steps as there are photos take every bucket
    once per photo in it, in an order that depends on the seed: all photos are seen equally often.
    """
    cycle, place = divmod(step, sum(counts))
    buckets = [bucket for bucket, count in enumerate(counts) for _ in range(count)]
    order = torch.randperm(len(buckets), generator=objective.seeded_generator(seed, "buckets", cycle)).tolist()
    taken = [buckets[index] for index in order[: place + 1]]
    return taken[-1], cycle * counts[taken[-1]] + taken.count(taken[-1]) - 1


def make_batch(session: Session, step: int, micro: int) -> Batch:
    """Return this process's batch number ``micro`` of a step."""
    config, accelerator = session.config, session.accelerator

    def position(step: int) -> int:
        batch = step * config.gradient_accumulation_steps + micro
        return batch * accelerator.num_processes + accelerator.process_index

    bucket, turn = bucket_of_step([len(cache.mean) for cache in session.photos], step, config.seed)
    label = f" {bucket}" if len(session.photos) > 1 else ""
    given = [session.photos[bucket].batch(config.batch_size, position(turn), config.seed, f"photos{label}")]
    if session.class_images:
        cache = session.class_images[bucket]
        given.append(cache.batch(config.batch_size, position(turn), config.seed, f"class{label}"))
    latents = torch.cat([examples.latents for examples in given])
    text = {key: torch.cat([examples.text[key] for examples in given]) for key in given[0].text}
    alphas, kind = session.noise_process.alphas_cumprod, session.noise_process.prediction_type
    generator = objective.seeded_generator(config.seed, "noise", position(step))
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = objective.sample_timesteps(len(latents), len(alphas), config.timestep_bias, generator)
    target = objective.prediction_target(latents, noise, timesteps, alphas, kind)
    weights = objective.min_snr_weights(timesteps, alphas, config.min_snr_gamma, kind, config.min_snr_formula)
    noisy = objective.add_noise(latents, noise, timesteps, alphas)
    return Batch(noisy, timesteps, text, target, weights, _joined_masks(given))


def _joined_masks(given: Sequence[Examples]) -> Tensor | None:
    """Return the masks of the samples (B, 1, h, w), ones for those without; None if none has one."""
    if all(examples.mask is None for examples in given):
        return None
    masks = [torch.ones_like(e.latents[:, :1]) if e.mask is None else e.mask for e in given]
    return torch.cat(masks)
