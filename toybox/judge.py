"""The judge: a small classifier of images into objects, scenes and attributes, to score the base model.

It has training images of its own, and neither its weights nor its predictions are used in any other training. It knows
the objects and scenes of the toy world only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toybox.attributes import ATTRIBUTES
from toybox.autoencoder import normalize
from toybox.checkpoints import load_checkpoint
from toybox.labels import Label
from toybox.objects import OBJECTS
from toybox.scenes import SCENES

OBJECT_NAMES: tuple[str, ...] = tuple(entry.name for entry in OBJECTS)
SCENE_NAMES: tuple[str, ...] = tuple(SCENES)
ATTRIBUTE_NAMES: tuple[str, ...] = ("", *ATTRIBUTES)
"""Class names in the order of their indices. The first attribute is none."""

CHANNELS = (32, 64, 192)
"""Channels of the judge's three levels."""
FEATURES = 128
SHARPNESS = 20.0
"""Scale from cosine similarities to logits."""
UNKNOWN = -100
"""Target that the loss ignores: the object where an image shows two, or one in other colours."""


@dataclass(frozen=True)
class Predictions:
    """Predicted class indices of objects, scenes and attributes, (N,) each."""

    objects: Tensor
    scenes: Tensor
    attributes: Tensor


class Block(nn.Module):
    """Residual block of two convolutions (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *conv_norm(channels, channels, 3), nn.ReLU(inplace=True), *conv_norm(channels, channels, 3)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Apply the block to features (N, C, h, w)."""
        return F.relu(features + self.convolutions(features), inplace=True)


class Judge(nn.Module):
    """Residual network over 32×32, 16×16 and 8×8 features, pooled to one vector, with three heads.

    Scenes and attributes are linear in that vector. Objects are classified by the cosine between a projection of it and
    each object's direction (NormFace, Wang et al. 2017), so that images of one object have similar features in every
    scene and attribute, even if the judge was not trained on the object. 1.1 M parameters by default.
    """

    def __init__(self, channels: tuple[int, int, int] = CHANNELS) -> None:
        super().__init__()
        first, second, third = channels
        self.body = nn.Sequential(
            *conv_norm(3, first, 7, stride=4),
            nn.ReLU(inplace=True),
            Block(first),
            *conv_norm(first, second, 3, stride=2),
            nn.ReLU(inplace=True),
            Block(second),
            Block(second),
            *conv_norm(second, third, 3, stride=2),
            nn.ReLU(inplace=True),
            Block(third),
        )
        self.features = nn.Linear(2 * third, FEATURES)
        # "things" and "looks" are the keys of the published weights
        self.things = nn.Linear(FEATURES, len(OBJECT_NAMES), bias=False)
        self.scenes = nn.Linear(2 * third, len(SCENE_NAMES))
        self.looks = nn.Linear(2 * third, len(ATTRIBUTE_NAMES))

    def pool(self, pixels: Tensor) -> Tensor:
        """Pool images (N, 3, H, W) in [−1, 1] to vectors (N, 2C)."""
        # channels-last for the input only: checkpoints restore the optimiser state in contiguous layout
        features = self.body(pixels.contiguous(memory_format=torch.channels_last))
        return torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)

    def object_features(self, pooled: Tensor) -> Tensor:
        """Project pooled vectors to normalized object features (N, FEATURES) in float32."""
        return F.normalize(self.features(pooled).float(), dim=1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits of objects, scenes and attributes of images (N, 3, H, W) in [−1, 1]."""
        pooled = self.pool(pixels)
        cosines = self.object_features(pooled) @ F.normalize(self.things.weight, dim=1).T
        return SHARPNESS * cosines, self.scenes(pooled), self.looks(pooled)


def conv_norm(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    """Return a convolution and its batch norm."""
    return nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(channels_out)


def load_judge(checkpoint: Path, channels: tuple[int, int, int] = CHANNELS) -> Judge:
    """Load the judge from a checkpoint. Raises FileNotFoundError if there is none."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"no judge at {checkpoint}: run the `judge` stage first")
    judge = Judge(channels)
    load_checkpoint(checkpoint, {"judge": judge})
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def classify(judge: Judge, images: Tensor, batch: int = 64) -> Predictions:
    """Classify uint8 images (N, H, W, 3)."""
    indices = [[logits.argmax(1).cpu() for logits in judge(pixels)] for pixels in _batches(judge, images, batch)]
    return Predictions(*(torch.cat(parts) for parts in zip(*indices, strict=True)))


@torch.no_grad()
def object_features(judge: Judge, images: Tensor, batch: int = 64) -> Tensor:
    """Return normalized object features (N, FEATURES) of uint8 images (N, H, W, 3)."""
    batches = _batches(judge, images, batch)
    return torch.cat([judge.object_features(judge.pool(pixels)).cpu() for pixels in batches])


def _batches(judge: Judge, images: Tensor, batch: int) -> Iterable[Tensor]:
    """Yield batches of uint8 images (N, H, W, 3) as float (N, 3, H, W) on the judge's device."""
    device = next(judge.parameters()).device
    return (normalize(part).to(device) for part in images.split(batch))


def label_targets(labels: Iterable[Label]) -> Tensor:
    """Return the class indices (N, 3) of each label's object, scene and attribute, UNKNOWN where ambiguous."""
    objects, scenes, attributes = (
        {name: number for number, name in enumerate(names)} for names in (OBJECT_NAMES, SCENE_NAMES, ATTRIBUTE_NAMES)
    )
    rows = [
        (UNKNOWN, scenes[label.scene], UNKNOWN)
        if label.second_object
        else (
            UNKNOWN if label.hue_shift else objects[label.object],
            scenes[label.scene],
            attributes[label.attribute],
        )
        for label in labels
    ]
    return torch.tensor(rows)


def accuracy(predicted: Tensor, targets: Tensor) -> float:
    """Share of predictions equal to the targets, without UNKNOWN ones; NaN if all are."""
    known = targets != UNKNOWN
    return (predicted[known] == targets[known]).float().mean().item()
