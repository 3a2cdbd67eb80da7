"""From PIL images to the pixel values of an image model, with PIL and torch.

The results equal those of transformers' image processors of the PIL backend. torchvision's ``CenterCrop``, which the
models' authors use, begins one pixel later for some sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

RGB = tuple[float, float, float]

IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop the centre, scale to 0 … 1 and normalize.

    Attributes:
        resize: length of the shorter side in pixels, or (width, height), which does not keep the aspect ratio.
        crop: side of the square in pixels, at most ``resize``.
        mean, std: of each channel, in units of the range 0 … 1.
        resample: PIL's filter.
    """

    resize: int | tuple[int, int]
    crop: int
    mean: RGB = IMAGENET_MEAN
    std: RGB = IMAGENET_STD
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Return pixel values (N, 3, crop, crop) of N images in float32."""
        return normalized(to_pixels([self._cropped(image) for image in images]), self.mean, self.std)

    def _cropped(self, image: Image.Image) -> Image.Image:
        resized = image.convert("RGB").resize(self._size(image), self.resample)
        left, top = (resized.width - self.crop) // 2, (resized.height - self.crop) // 2
        return resized.crop((left, top, left + self.crop, top + self.crop))

    def _size(self, image: Image.Image) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize
        width, height = image.size
        longer = int(self.resize * max(width, height) / min(width, height))
        return (longer, self.resize) if width > height else (self.resize, longer)


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Return the pixels (N, 3, H, W) of N images of one size, from 0 to 1."""
    arrays = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255


def normalized(pixels: Tensor, mean: RGB, std: RGB) -> Tensor:
    """Return pixels (N, 3, H, W) minus the mean and divided by the standard deviation of each channel."""
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
