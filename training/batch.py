"""The batches of a run: everything that is sampled, prepared on the CPU.

A batch depends only on the seed and its position. All batches of a step have the same shapes, in all processes: their
photos are from one bucket.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hra_diffusion.models.families import Text
from training import objective
from training.config import TrainConfig
from training.data.latent_cache import Examples, LatentCache
from training.noising import noised, signal_levels
from training.session.state import Session


@dataclass(frozen=True)
class Batch:
    """B samples of a training step, class images or class captions included.

    Attributes:
        latents: noisy latents (B, C, h, w).
        timesteps: their timesteps (B,), as the denoiser takes them.
        text: token ids or embeddings, and time ids for SDXL (see ``families``).
        target: what the denoiser should predict (B, C, h, w).
        weights: weight of each sample in the loss (B,).
        thresholds: threshold of the Huber loss for each sample (B,).
        mask: weight of each latent position in the loss (B, 1, h, w), or None.
    """

    latents: Tensor
    timesteps: Tensor
    text: Text
    target: Tensor
    weights: Tensor
    thresholds: Tensor
    mask: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in a fixed order."""
        mask = [] if self.mask is None else [self.mask]
        return [self.latents, self.timesteps, self.target, self.weights, self.thresholds, *mask, *self.text.values()]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with ``function`` applied to every tensor."""
        text = {key: function(value) for key, value in self.text.items()}
        mask = None if self.mask is None else function(self.mask)
        latents, timesteps, target, weights, thresholds = map(function, self.tensors[:5])
        return Batch(latents, timesteps, text, target, weights, thresholds, mask)


def make_batches(session: Session, step: int) -> list[Batch]:
    """Return the batches of optimiser step ``step``, counted from 0: one per accumulated gradient. Pinned for CUDA."""
    batches = [make_batch(session, step, micro) for micro in range(session.config.gradient_accumulation_steps)]
    if session.accelerator.device.type == "cuda":
        return [batch.map(Tensor.pin_memory) for batch in batches]
    return batches


def bucket_of_step(counts: Sequence[int], step: int, seed: int) -> tuple[int, int]:
    """Return the bucket that all batches of a step come from, and the number of earlier steps with the same one.

    ``counts`` are the numbers of samples in an epoch of each bucket. As many consecutive steps as there are samples
    take every bucket once per sample in it, in an order that depends on the seed: all samples are seen equally often.
    """
    cycle, place = divmod(step, sum(counts))
    buckets = [bucket for bucket, count in enumerate(counts) for _ in range(count)]
    order = torch.randperm(len(buckets), generator=objective.seeded_generator(seed, "buckets", cycle)).tolist()
    taken = [buckets[index] for index in order[: place + 1]]
    return taken[-1], cycle * counts[taken[-1]] + taken.count(taken[-1]) - 1


def samples_per_bucket(session: Session) -> list[int]:
    """Return the number of samples in an epoch of each bucket, for ``bucket_of_step``."""
    return [len(cache.samples) for cache in session.photos]


def make_batch(session: Session, step: int, micro: int) -> Batch:
    """Return this process's batch number ``micro`` of a step."""
    config, accelerator = session.config, session.accelerator

    def position(step: int) -> int:
        batch = step * config.gradient_accumulation_steps + micro
        return batch * accelerator.num_processes + accelerator.process_index

    bucket, turn = bucket_of_step(samples_per_bucket(session), step, config.seed)
    label = f" {bucket}" if len(session.photos) > 1 else ""

    def examples(caches: Sequence[LatentCache], what: str) -> Examples:
        return caches[bucket].batch(config.batch_size, position(turn), config.seed, f"{what}{label}")

    given = [examples(session.photos, "photos")]
    if session.class_images:
        given.append(examples(session.class_images, "class"))
    batch = noisy_batch(session, given, position(step))
    if not session.class_captions:
        return batch
    return with_class_captions(batch, examples(session.class_captions, "photos").text)


def noisy_batch(session: Session, given: Sequence[Examples], position: int) -> Batch:
    """Return the batch of these examples with the noise and timesteps of a position."""
    config = session.config
    latents = torch.cat([examples.latents for examples in given])
    text = {key: torch.cat([examples.text[key] for examples in given]) for key in given[0].text}
    process = session.noise_process
    alphas, kind = signal_levels(process, latents), process.prediction_type
    noise, generator = make_noise(latents.shape, config, position)
    timesteps = objective.sample_timesteps(len(latents), process.timesteps, config, generator)
    added = noise
    if config.input_perturbation:
        more = torch.randn(latents.shape, generator=objective.seeded_generator(config.seed, "perturbation", position))
        added = noise + config.input_perturbation * more  # arXiv 2301.11706: not in the target
    noisy, times, target = noised(process, latents, noise, timesteps, added)
    return Batch(
        noisy, times, text, target, loss_weights(config, timesteps, alphas, kind),
        objective.huber_thresholds(timesteps, alphas, config.huber_c, config.huber_schedule), joined_masks(given),
    )  # fmt: skip


def joined_masks(given: Sequence[Examples]) -> Tensor | None:
    """Return the masks of the samples (B, 1, h, w), ones for those without; None if none has one."""
    if all(examples.mask is None for examples in given):
        return None
    masks = [torch.ones_like(e.latents[:, :1]) if e.mask is None else e.mask for e in given]
    return torch.cat(masks)


def with_class_captions(batch: Batch, text: Text) -> Batch:
    """Return a batch of twice the size, whose second half has this text and no mask, and is otherwise the same."""
    twice = batch.map(lambda tensor: torch.cat([tensor, tensor]))
    mask = None if batch.mask is None else torch.cat([batch.mask, torch.ones_like(batch.mask)])
    return replace(twice, text={key: torch.cat([value, text[key]]) for key, value in batch.text.items()}, mask=mask)


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
