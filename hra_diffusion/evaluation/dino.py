"""DINO and DINOv2: image embeddings by self-supervised vision transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from hra_diffusion.evaluation.embedder import embed, load_model
from hra_diffusion.evaluation.preprocessing import Preprocessing

HUB_DINO = "facebook/dino-vits16"
HUB_DINOV2 = "facebook/dinov2-base"

OFFICIAL = Preprocessing(resize=256, crop=224)
"""The evaluation transform of both models' authors: bicubic, ImageNet's mean and standard deviation
(``extract_feature_pipeline`` in eval_knn.py of facebookresearch/dino, ``make_classification_eval_transform`` in
dinov2/data/transforms.py of facebookresearch/dinov2 05c66df)."""
HUB_PROCESSOR = Preprocessing(resize=(224, 224), crop=224, resample=Image.Resampling.BILINEAR)
"""The processor of facebook/dino-vits16 on the hub (preprocessor_config.json since bf35519), which HRA's authors use
(generation/subject/evaluate.py of DaShenZi721/HRA 8bfc9b0): the whole image, bilinear, without its aspect ratio."""


class Dino:
    """DINO (arXiv 2104.14294) or DINOv2 (arXiv 2304.07193): the class token after the last layer norm.

    DreamBooth's figures (arXiv 2208.12242, section 4.1) are by ViT-S/16, those of PEFT's image benchmark
    (method_comparison/image-gen of huggingface/peft 250c3be) by DINOv2-base and the same token.
    """

    def __init__(
        self,
        source: str | Path = HUB_DINO,
        device: str = "cpu",
        preprocessing: Preprocessing = OFFICIAL,
    ):
        """Load from a folder or a hub id. Raises UserError if the model is missing, damaged or incomplete."""
        from transformers import AutoModel

        self.model: Any = load_model(AutoModel, "the DINO model", source, device)
        self.model.pooler = None  # not used, and random where the weights lack it
        self.preprocessing = preprocessing
        self.label = f"{'DINOv2' if self.model.config.model_type == 'dinov2' else 'DINO'} ({Path(source).name})"

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return normalized embeddings (N, d) of N images."""
        return embed(images, self.preprocessing, self._class_token, self.model.device)

    def _class_token(self, pixels: Tensor) -> Tensor:
        return self.model(pixels).last_hidden_state[:, 0]
