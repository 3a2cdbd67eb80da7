"""LPIPS: a perceptual distance between images by the features of a classifier (Zhang et al. 2018, arXiv 1801.03924).

The package lpips ships the weights of the channels. Its own code needs torchvision for the classifier, so that the few
layers are built here and get their weights from a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hra_diffusion.errors import UserError, first_line
from hra_diffusion.evaluation.packaged_weights import load_packaged
from hra_diffusion.evaluation.preprocessing import normalized, to_pixels
from hra_diffusion.hub import is_hub_id, user_errors
from hra_diffusion.threads import sharing_cores

Net = Literal["vgg", "alex"]

HUB_VGG = "timm/vgg16.tv_in1k"
"""torchvision's VGG16, IMAGENET1K_V1, as safetensors."""
VGG_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
MEAN = (-0.030, -0.088, -0.188)
STD = (0.458, 0.448, 0.450)
"""Of pixels in −1 … 1: ``ScalingLayer`` of lpips 0.1.4."""
EPSILON = 1e-10
"""``normalize_tensor`` of lpips 0.1.4."""

Features = list[Tensor]
"""Per layer: features (1, C, h, w), normalized over the channels."""


class Lpips:
    """LPIPS version 0.1 with VGG16, as HRA's authors use it, or AlexNet, the default of the package lpips."""

    def __init__(self, source: str | Path | None = None, net: Net = "vgg", device: str = "cpu"):
        """Load the classifier's weights, named as torchvision names them, and those of the channels.

        Args:
            source: a .safetensors file, a folder with model.safetensors, or a hub id; by default ``HUB_VGG``. AlexNet
                has no default.
            net: the classifier.
            device: where to compute.

        Raises UserError if the package lpips is missing, and if the weights are missing or of another classifier.
        """
        weights = load_packaged("lpips", f"weights/v0.1/{net}.pth", "eval")
        self.device = torch.device(device)
        self.label = f"LPIPS ({net})"
        self.layers, self.taps = _vgg16() if net == "vgg" else _alexnet()
        _load(self.layers, _file(source or _default_source(net)))
        self.layers.eval().requires_grad_(False).to(self.device)
        self.channel_weights = [weights[f"lin{n}.model.1.weight"].to(self.device) for n in range(len(self.taps))]

    def distances(self, images: Sequence[Image.Image], others: Sequence[Image.Image]) -> list[float]:
        """Return the distance, from 0, of each image to its counterpart of the same size."""
        with sharing_cores(self.device.type):
            return [self._distance(self._features(a), self._features(b)) for a, b in zip(images, others, strict=True)]

    def between(self, images: Iterable[Image.Image], others: Iterable[Image.Image]) -> Tensor:
        """Return the distances (N, M) between N images and M others, all of one size.

        The features of the others are in memory at once.
        """
        with sharing_cores(self.device.type):
            features = [self._features(other) for other in others]
            rows = (self._features(image) for image in images)
            return torch.tensor([[self._distance(row, other) for other in features] for row in rows])

    def pairwise(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the distances (N, N) between N images of one size. The features of all are in memory at once."""
        result = torch.zeros(len(images), len(images))
        with sharing_cores(self.device.type):
            features = [self._features(image) for image in images]
            for i, j in combinations(range(len(images)), 2):
                result[i, j] = result[j, i] = self._distance(features[i], features[j])
        return result

    @torch.no_grad()
    def _features(self, image: Image.Image) -> Features:
        hidden = normalized(2 * to_pixels([image]) - 1, MEAN, STD).to(self.device)
        found = []
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden)
            if number in self.taps:
                found.append(hidden / (hidden.norm(dim=1, keepdim=True) + EPSILON))
        return found

    def _distance(self, features: Features, others: Features) -> float:
        """Sum over the layers of the squared differences, weighted per channel and averaged over the positions."""
        layers = zip(features, others, self.channel_weights, strict=True)
        return torch.stack([(weight * (a - b) ** 2).sum(dim=1).mean() for a, b, weight in layers]).sum().item()


def _vgg16() -> tuple[nn.Sequential, tuple[int, ...]]:
    """Return torchvision's ``vgg16().features`` up to relu5_3, and the indices of the five layers that LPIPS uses."""
    layers: list[nn.Module] = []
    taps, last = [], 3
    for number, block in enumerate(VGG_CHANNELS):
        layers += [nn.MaxPool2d(2)] if number else []
        for channels in block:
            layers += [nn.Conv2d(last, channels, 3, padding=1), nn.ReLU()]
            last = channels
        taps.append(len(layers) - 1)
    return nn.Sequential(*layers), tuple(taps)


def _alexnet() -> tuple[nn.Sequential, tuple[int, ...]]:
    """Return torchvision's ``alexnet().features`` up to its last ReLU, and the indices that LPIPS uses."""
    layers = nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip
    return layers, (1, 4, 7, 9, 11)


def _default_source(net: Net) -> str:
    if net == "vgg":
        return HUB_VGG
    raise UserError(
        "LPIPS with AlexNet needs torchvision's alexnet-owt-7be5be79 as a .safetensors file; give its path or use VGG16"
    )


def _file(source: str | Path) -> Path:
    """Return the file with a classifier's weights; it is downloaded from the hub if ``source`` is a hub id."""
    path = Path(source)
    if path.is_dir():
        return path / "model.safetensors"
    if not path.exists() and is_hub_id(str(source)):
        with user_errors(str(source)):
            return Path(hf_hub_download(str(source), "model.safetensors"))
    return path


def _load(layers: nn.Sequential, path: Path) -> None:
    """Load "features.*" of a classifier's weights."""
    prefix = "features."
    try:
        with safe_open(path, "pt") as file:
            names = [prefix + name for name in layers.state_dict()]
            layers.load_state_dict({name.removeprefix(prefix): file.get_tensor(name) for name in names})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{path} can't be used for LPIPS: {first_line(error)}. It must hold the weights of torchvision's "
            f"classifier as safetensors; those of VGG16 are model.safetensors of {HUB_VGG} on the Hugging Face hub"
        ) from None
