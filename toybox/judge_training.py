"""Training and test of the judge, on renders with other seeds than those of the base model's training."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from hra_diffusion.evaluation.judge import CHANNELS, Judge, classify, normalize
from toybox.checkpoints import Progress
from toybox.judge import UNKNOWN, accuracy, label_targets, make_judge
from toybox.loop import Budget, Training, autocast
from toybox.shards import Shard, render_missing

FIRST_SHARD = 90_000
"""First shard of the judge's training data; the base model's shards have lower numbers."""
TEST_SHARD = 99_999
"""Shard that tests the judge; it is never trained on."""


@dataclass(frozen=True)
class JudgeRecipe:
    """Channels of the judge's three levels, and the hyperparameters of its training."""

    channels: tuple[int, int, int] = CHANNELS
    batch: int = 128
    learning_rate: float = 3e-3
    label_smoothing: float = 0.1
    """Label smoothing of objects: many look alike when small and blurred."""
    shift: int = 8
    """Maximum translation in pixels, in either direction."""
    jitter: float = 0.08
    """Maximum relative change of each colour channel, and absolute change of brightness."""
    noise: float = 0.06
    """Maximum standard deviation of the noise on images in [−1, 1]."""
    seed: int = 0


@dataclass(frozen=True)
class Accuracies:
    """Accuracy for objects, scenes and attributes; for attributes among the images that have one."""

    objects: float
    scenes: float
    attributes: float


def render_judge_shards(sprites: Path, folder: Path, count: int, size: int) -> None:
    """Render the judge's training data, ``count`` shards in total."""
    render_missing(sprites, folder, range(FIRST_SHARD, FIRST_SHARD + count), size)


def sample_batch(images: Tensor, recipe: JudgeRecipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sample a batch: indices (N,) and randomly translated images, uint8 (N, H, W, 3)."""
    indices = torch.randint(len(images), (recipe.batch,), generator=generator)
    shifts = torch.randint(-recipe.shift, recipe.shift + 1, (2, recipe.batch, 1), generator=generator)
    height, width = images.shape[1:3]
    rows = (torch.arange(height) + shifts[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + shifts[1]).clamp(0, width - 1)
    return indices, images[indices[:, None, None], rows[:, :, None], columns[:, None, :]]


def augment(pixels: Tensor, recipe: JudgeRecipe, generator: torch.Generator) -> Tensor:
    """Randomly change colours, sharpness and noise of images (N, 3, H, W) in [−1, 1]: generated images are blurred."""
    count = len(pixels)

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.empty(count, channels, 1, 1).uniform_(low, high, generator=generator).to(pixels.device)

    blurred = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
    # one noise tensor for the batch, scaled for each image: sampling it is slow
    noise = torch.randn(pixels.shape[1:], generator=generator).to(pixels.device)
    augmented = blurred.sub_(pixels).mul_(uniform(-0.5, 1.0).clamp(min=0)).add_(pixels)
    augmented.mul_(uniform(1 - recipe.jitter, 1 + recipe.jitter, 3)).add_(uniform(-recipe.jitter, recipe.jitter))
    return augmented.addcmul_(noise, uniform(-recipe.noise, recipe.noise)).clamp_(-1, 1)


def train_judge(images: Shard, checkpoint: Path, budget: Budget, device: torch.device, recipe: JudgeRecipe) -> Progress:
    """Train on uint8 images and their labels, continuing from ``checkpoint`` if it exists."""
    torch.manual_seed(recipe.seed)
    judge = make_judge(recipe.channels).to(device).train()
    targets = label_targets(images.labels)

    def loss_fn(step: int, used: float) -> Tensor:
        generator = torch.Generator().manual_seed(recipe.seed + step)
        indices, shifted = sample_batch(images.values, recipe, generator)
        pixels = augment(normalize(shifted).to(device), recipe, generator)
        with autocast(device):
            predictions = judge(pixels)
        smoothings = (recipe.label_smoothing, 0.0, 0.0)
        losses = [
            F.cross_entropy(logits.float(), target, ignore_index=UNKNOWN, reduction="sum", label_smoothing=smoothing)
            for logits, target, smoothing in zip(predictions, targets[indices].T.to(device), smoothings, strict=True)
        ]
        return torch.stack(losses).sum() / recipe.batch

    training = Training(
        "judge", {"judge": judge}, list(judge.parameters()), checkpoint, recipe.learning_rate, recipe.batch
    )
    return training.run(budget, loss_fn)


def evaluate(judge: Judge, images: Shard) -> Accuracies:
    """Return the judge's accuracies on uint8 images that it was not trained on."""
    predicted = classify(judge, images.values)
    objects, scenes, attributes = label_targets(images.labels).T
    attributes = torch.where(attributes == 0, UNKNOWN, attributes)
    return Accuracies(
        accuracy(predicted.objects, objects),
        accuracy(predicted.scenes, scenes),
        accuracy(predicted.attributes, attributes),
    )
