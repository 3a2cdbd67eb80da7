"""Training of the base model's UNet with the frozen text encoder of the CLIP model.

Its small capacity is spent on noisy timesteps, which decide outlines, and on the area that objects cover. (Min-SNR
weighting with γ = 5 spends only a twelfth of the training on SNR below 0.3, and outlines fell apart.)
"""

import os
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPModel, CLIPTokenizer

from toybox.base import Base, new_scheduler
from toybox.captions import sample_caption
from toybox.checkpoints import Progress, load_checkpoint, read_progress
from toybox.labels import Label
from toybox.loop import Budget, Training, autocast
from toybox.shards import Shard
from toybox.tokenizer import tokenise
from toybox.warm_start import warm_start_unet
from training.objective import sample_timesteps
from training.settings.objective import ObjectiveSettings


@dataclass(frozen=True)
class BaseRecipe:
    """Channels of the UNet's three levels, and the hyperparameters of its training."""

    channels: tuple[int, int, int] = (96, 160, 224)
    batch: int = 64
    learning_rate: float = 1.2e-3
    ema_decay: float = 0.998
    object_weight: float = 4.0
    """Loss weight of latents that objects cover, and of their neighbours, relative to the background."""
    timestep_bias: float = 0.65
    """Exponent of the uniform number that timesteps are sampled from: below 1, noisy ones are more frequent."""
    compile: bool = False
    """Compile the UNet: one to three minutes, then 1.5 times the speed."""
    seed: int = 0


@dataclass(frozen=True)
class CaptionedBatches(Dataset[tuple[Tensor, Tensor]]):
    """Batch of each training step: indices of random images (N,) and token ids of sampled captions (N, MAX_LENGTH)."""

    labels: Sequence[Label]
    tokenizer: CLIPTokenizer
    batch: int
    seed: int

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch of a step, a deterministic function of its number."""
        rng = np.random.default_rng(self.seed + step)
        indices = rng.integers(len(self.labels), size=self.batch)
        captions = [sample_caption(self.labels[index], rng) for index in indices.tolist()]
        return torch.from_numpy(indices), tokenise(self.tokenizer, captions)

    def since(self, step: int, workers: int) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return an endless loader of the batches from ``step`` on, with ``workers`` processes."""
        return DataLoader(self, batch_size=None, sampler=range(step, sys.maxsize), num_workers=workers)


def loss_weights(coverage: Tensor | None, object_weight: float) -> Tensor:
    """Return loss weights (N, 1, h, w) with a mean of 1 from the coverage of latents by objects, uint8 (N, h, w).

    The neighbours of a covered latent count as covered, because outlines lie there.
    """
    if coverage is None:
        return torch.ones(1, 1, 1, 1)
    near = F.max_pool2d((coverage[:, None] > 16).float(), 3, stride=1, padding=1)
    weights = 1 + (object_weight - 1) * near
    return weights / weights.mean()


def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Update the exponential moving average of the weights; its decay starts low and rises to ``decay``."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), weight)


def new_base(
    tokenizer: CLIPTokenizer,
    latent_channels: int,
    device: torch.device,
    recipe: BaseRecipe,
    clip: CLIPModel,
    initial_model: Path | None,
) -> Base:
    """Create the model to train, with the frozen text encoder of ``clip`` and, if given, the UNet of a pipeline."""
    base = Base(tokenizer, latent_channels, recipe.channels).to(device)
    base.text_encoder.load_state_dict(clip.text_model.state_dict())
    base.text_encoder.requires_grad_(False)
    if initial_model is not None:
        warm_start_unet(base.unet, initial_model)
    return base


def train_base(
    latents: Shard,
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    budget: Budget,
    device: torch.device,
    recipe: BaseRecipe,
    clip: CLIPModel,
    initial_model: Path | None = None,
) -> Progress:
    """Train the UNet on latents and their labels with the frozen text encoder of ``clip``.

    Continues from ``checkpoint`` if it exists; otherwise starts from the pipeline folder ``initial_model``, or from
    scratch.
    """
    torch.manual_seed(recipe.seed)
    base = new_base(tokenizer, latents.values.shape[1], device, recipe, clip, initial_model)
    average = deepcopy(base).requires_grad_(False)
    scheduler = new_scheduler()
    if device.type == "cpu":
        # at this size the backward pass of fused attention is slower on a CPU
        base.unet.set_attn_processor(AttnProcessor())
    if recipe.compile:
        base.unet.compile(dynamic=False)
    values, coverage = latents.values.to(device), None if latents.coverage is None else latents.coverage.to(device)
    # on a CPU workers would take cores from training; a GPU would wait for captions
    workers = 0 if device.type == "cpu" else max(1, (os.cpu_count() or 1) - 2)
    batches = CaptionedBatches(latents.labels, tokenizer, recipe.batch, recipe.seed)
    sampling = ObjectiveSettings.model_construct(timestep_bias=recipe.timestep_bias)
    upcoming = iter(batches.since(read_progress(checkpoint).step, workers))

    def loss_fn(step: int, used: float) -> Tensor:
        indices, tokens = (part.to(device) for part in next(upcoming))
        clean = values[indices].float()
        generator = torch.Generator(device).manual_seed(recipe.seed + step)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        timesteps = sample_timesteps(recipe.batch, len(scheduler.alphas_cumprod), sampling, generator)
        noisy = scheduler.add_noise(clean, noise, timesteps)  # pyright: ignore[reportArgumentType]
        target = scheduler.get_velocity(clean, noise, timesteps)  # pyright: ignore[reportArgumentType]
        with autocast(device):
            predicted = base(noisy, timesteps, tokens)
        weights = loss_weights(None if coverage is None else coverage[indices], recipe.object_weight).to(device)
        return (weights * (predicted.float() - target).square()).mean()

    def average_weights(step: int) -> None:
        update_average(average, base, step, recipe.ema_decay)

    modules: dict[str, nn.Module] = {"base": base, "average": average}
    training = Training("base", modules, list(base.unet.parameters()), checkpoint, recipe.learning_rate, recipe.batch)
    return training.run(budget, loss_fn, average_weights)


def load_average(checkpoint: Path, tokenizer: CLIPTokenizer, latent_channels: int, recipe: BaseRecipe) -> Base:
    """Load the averaged weights of a checkpoint, in eval mode."""
    base = Base(tokenizer, latent_channels, recipe.channels)
    load_checkpoint(checkpoint, {"average": base})
    return base.eval()
