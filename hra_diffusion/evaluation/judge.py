"""Toybox's judge: a small classifier of images into the objects, scenes and attributes of toybox's world.

It has training images of its own (``toybox.judge_training``), and neither its weights nor its predictions are used in
any other training. It knows toybox's world only, so its verdicts compare adapters of toybox, and nothing else.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from hra_diffusion.files import atomic_path

CHANNELS = (32, 64, 192)
"""Channels of the judge's three levels."""
FEATURES = 128
SHARPNESS = 20.0
"""Scale from cosine similarities to logits."""


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
    scene and attribute, even if the judge was not trained on the object. 1.1 M parameters by default. The arguments
    are the numbers of classes.
    """

    def __init__(self, objects: int, scenes: int, attributes: int, channels: tuple[int, int, int] = CHANNELS) -> None:
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
        self.things = nn.Linear(FEATURES, objects, bias=False)
        self.scenes = nn.Linear(2 * third, scenes)
        self.looks = nn.Linear(2 * third, attributes)

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
    """Yield batches of uint8 images (N, H, W, 3) as float (N, 3, H, W) in [−1, 1] on the judge's device."""
    device = next(judge.parameters()).device
    return (normalize(part).to(device) for part in images.split(batch))


def normalize(images: Tensor) -> Tensor:
    """Convert uint8 images (N, H, W, 3) to float (N, 3, H, W) in [−1, 1]."""
    return (images.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()


def stack(images: Sequence[Image.Image]) -> Tensor:
    """Stack images of one size as uint8: RGB (N, H, W, 3) or L (N, H, W)."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


@dataclass(frozen=True)
class References:
    """Names of objects and subjects, and the normalized mean of the judge's features of each, (M, C)."""

    names: list[str]
    means: Tensor

    @classmethod
    def of(cls, features: Mapping[str, Tensor]) -> Self:
        """Average the features (N, C) of each name's images."""
        return cls(list(features), F.normalize(torch.stack([own.mean(0) for own in features.values()]), dim=1))

    def nearest(self, features: Tensor) -> list[str]:
        """Return the name with the nearest mean for each row of features (N, C)."""
        return [self.names[index] for index in (features @ self.means.T).argmax(1).tolist()]


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in an image: the nearest object or subject, the scene, and the attribute or ""."""

    object: str
    scene: str
    attribute: str


@dataclass(frozen=True)
class ToyboxJudge:
    """The judge with the references of all objects and held-out subjects, and the names of its classes."""

    judge: Judge
    references: References
    scenes: list[str]
    attributes: list[str]

    def verdicts(self, images: Sequence[Image.Image]) -> list[Verdict]:
        """Judge images of toybox's size."""
        values = stack([image.convert("RGB") for image in images])
        seen, nearest = classify(self.judge, values), self.references.nearest(object_features(self.judge, values))
        return [
            Verdict(name, self.scenes[scene], self.attributes[attribute])
            for name, scene, attribute in zip(nearest, seen.scenes.tolist(), seen.attributes.tolist(), strict=True)
        ]

    def save_references(self, path: Path) -> None:
        """Write the references and the names of the classes to a safetensors file."""
        names = {"names": self.references.names, "scenes": self.scenes, "attributes": self.attributes}
        with atomic_path(path) as unfinished:
            save_file({"means": self.references.means}, unfinished, {key: json.dumps([*v]) for key, v in names.items()})


def load_judge(weights: Path, references: Path) -> ToyboxJudge:
    """Load the judge from its weights and the file that ``save_references`` wrote."""
    with safe_open(references, "pt") as file:
        names = {key: json.loads(value) for key, value in file.metadata().items()}
        means = file.get_tensor("means")
    with safe_open(weights, "pt") as file:
        values = {key.removeprefix("judge/"): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    judge = Judge(len(values["things.weight"]), len(names["scenes"]), len(names["attributes"]))
    judge.load_state_dict(values)
    judge.eval().requires_grad_(False)
    return ToyboxJudge(judge, References(names["names"], means), names["scenes"], names["attributes"])
