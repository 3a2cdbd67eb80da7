"""CLIP scores: how similar images are to the photos and how well they follow their prompts.

CLIP-I and CLIP-T as in the DreamBooth benchmark (Ruiz et al. 2023, arXiv 2208.12242, section 4.1): mean cosine
similarities. Both are proxies. Toybox has a CLIP model of its own, trained on the same toy world: its scores compare
adapters with each other, but not with published figures.

DreamBooth used ViT-B/32, HRA's authors ViT-L/14 (generation/subject/evaluate.py of DaShenZi721/HRA 8bfc9b0).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hra_diffusion.errors import UserError, first_line
from hra_diffusion.evaluation import measures
from hra_diffusion.evaluation.embedder import TextEmbedder, cannot_load, embed, load_model
from hra_diffusion.models.loading import LOAD_ERRORS
from hra_diffusion.models.prompts import without_weights
from hra_diffusion.models.sources import ASSETS, TOYBOX

HUB_CLIP = "openai/clip-vit-base-patch32"
"""The CLIP model of most published figures."""
HUB_CLIP_L14 = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class Score:
    """CLIP scores of one image; None for those not measured.

    Attributes:
        subject: mean cosine similarity to the photos (CLIP-I).
        prompt: cosine similarity to the prompt (CLIP-T).
        nearest: cosine similarity to the nearest photo; close to 1 for a copy.
        variety: mean CLIP distance (1 − cosine, 0 to 2) from the images that differ only in their noise.
        drift: CLIP distance, for the class noun without the trigger, between images with and without the adapters.
    """

    subject: float | None
    prompt: float
    nearest: float | None = None
    variety: float | None = None
    drift: float | None = None


class Clip:
    """A CLIP model with its processor: usually the shorter side to 224 pixels, bicubic, and the centre cropped."""

    def __init__(self, source: str | Path, device: str = "cpu", local_files_only: bool = False):
        """Load from a folder or a hub id. Raises UserError if the model is missing, damaged or incomplete."""
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor

        self.label = "toybox's CLIP (a proxy)" if source == default_source(TOYBOX) else f"CLIP ({Path(source).name})"
        self.model: Any = load_model(CLIPModel, "the CLIP model", source, device, local_files_only)
        try:
            self.processor: Any = CLIPProcessor.from_pretrained(source, local_files_only=local_files_only)
            # by PIL also where torchvision is installed, whose resizing differs
            self.preprocessing = CLIPImageProcessorPil.from_pretrained(source, local_files_only=local_files_only)
        except LOAD_ERRORS as error:
            raise cannot_load("the CLIP model", source, first_line(error)) from None

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return normalized embeddings (N, d) of N images."""
        return embed(images, self._pixels, self._features, self.model.device)

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        return self.preprocessing([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]

    def _features(self, pixels: Tensor) -> Tensor:
        return self.model.visual_projection(self.model.vision_model(pixels).pooler_output)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return normalized embeddings (N, d) of N texts, truncated to the model's length."""
        tokens = self.processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        pooled = self.model.text_model(**tokens.to(self.model.device)).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1).cpu()


def default_source(base: str) -> str:
    """Return the CLIP model that scores images of a base model: toybox's own, else ``HUB_CLIP``."""
    return str(ASSETS / f"{TOYBOX}-clip") if base == TOYBOX else HUB_CLIP


def find_clip(base: str, source: str | None = None, device: str = "cpu") -> tuple[Clip | None, str]:
    """Load the CLIP model ``source``, by default the base model's; return (model, "") or (None, reason).

    "none" stands for no model. Raises UserError if a given ``source`` can't be loaded.
    """
    if source == "none":
        return None, ""
    try:
        return Clip(source or default_source(base), device), ""
    except UserError as error:
        if source:
            raise
        return None, str(error)


def score_images(
    clip: TextEmbedder,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    photos: Sequence[Image.Image] = (),
    groups: Sequence[Hashable] = (),
) -> list[Score]:
    """Score each image against its prompt and all photos.

    Prompts should name the class noun, not the trigger. ``groups`` holds one value per image, equal for images that
    differ only in their noise; ``variety`` is measured within each group.
    """
    embeddings, texts = clip.embed_images(images), clip.embed_texts([without_weights(prompt) for prompt in prompts])
    prompt_scores = measures.prompt_fidelity(embeddings, texts).tolist()
    subject = nearest = varieties = [None] * len(prompt_scores)
    if photos:
        photo_embeddings = clip.embed_images(photos)
        subject = measures.subject_fidelity(embeddings, photo_embeddings).tolist()
        nearest = measures.nearest_photo(embeddings, photo_embeddings).similarity.tolist()
    if groups:
        varieties = measures.variety(embeddings, groups)
    return [Score(*values) for values in zip(subject, prompt_scores, nearest, varieties, strict=True)]


def clip_distance(clip: TextEmbedder, images: Sequence[Image.Image], others: Sequence[Image.Image]) -> list[float]:
    """Return 1 − cosine similarity (0 to 2) of each image and its counterpart."""
    return measures.drift(clip.embed_images(images), clip.embed_images(others)).tolist()
