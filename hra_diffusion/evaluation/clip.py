"""CLIP scores: how similar images are to the photos and how well they follow their prompts.

CLIP-I and CLIP-T as in the DreamBooth benchmark (Ruiz et al. 2023, arXiv 2208.12242, section 4.1): mean cosine
similarities. Both are proxies. Toybox has a CLIP model of its own, trained on the same toy world: its scores compare
adapters with each other, but not with published figures.
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
from hra_diffusion.models.loading import LOAD_ERRORS, LOAD_LOCK
from hra_diffusion.models.prompts import without_weights
from hra_diffusion.models.sources import ASSETS, TOYBOX
from hra_diffusion.threads import sharing_cores

HUB_CLIP = "openai/clip-vit-base-patch32"
"""The CLIP model of most published figures."""
BATCH_SIZE = 64


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
    """A CLIP model with its processor."""

    def __init__(self, source: str | Path, device: str = "cpu", local_files_only: bool = False):
        """Load from a folder or a hub id. Raises UserError if the model is missing or damaged."""
        from transformers import CLIPModel, CLIPProcessor

        try:
            with LOAD_LOCK:
                model: Any = CLIPModel.from_pretrained(source, dtype=torch.float32, local_files_only=local_files_only)
            self.model: Any = model.eval().to(device)
            self.processor: Any = CLIPProcessor.from_pretrained(source, local_files_only=local_files_only)
        except LOAD_ERRORS as error:
            raise UserError(
                f"the CLIP model {source}, which scores pictures, can't be loaded: {first_line(error)}"
            ) from None

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return normalized embeddings (N, d) of N images."""
        pixels = self.processor.image_processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        batches = pixels["pixel_values"].to(self.model.device).split(BATCH_SIZE)
        with sharing_cores(self.model.device.type):
            rows = [self.model.visual_projection(self.model.vision_model(batch).pooler_output) for batch in batches]
        return F.normalize(torch.cat(rows), dim=-1).cpu()

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
    clip: Clip,
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
    prompt_scores = (embeddings * texts).sum(dim=1).tolist()
    unknown = [None] * len(prompt_scores)
    similarities = embeddings @ clip.embed_images(photos).T if photos else None
    subject = unknown if similarities is None else similarities.mean(dim=1).tolist()
    nearest = unknown if similarities is None else similarities.amax(dim=1).tolist()
    varieties = variety(embeddings, groups) if groups else unknown
    return [Score(*values) for values in zip(subject, prompt_scores, nearest, varieties, strict=True)]


def variety(embeddings: Tensor, groups: Sequence[Hashable]) -> list[float | None]:
    """Return each image's mean CLIP distance from the others of its group; None if there are no others.

    Args:
        embeddings: normalized, (N, d).
    """
    result: list[float | None] = [None] * len(groups)
    for group in set(groups):
        members = [index for index, own in enumerate(groups) if own == group]
        similarities = embeddings[members] @ embeddings[members].T
        for row, index in enumerate(members if len(members) > 1 else []):
            others = similarities[row].sum().item() - similarities[row, row].item()
            result[index] = 1 - others / (len(members) - 1)
    return result


def clip_distance(clip: Clip, images: Sequence[Image.Image], others: Sequence[Image.Image]) -> list[float]:
    """Return 1 − cosine similarity (0 to 2) of each image and its counterpart."""
    return (1 - (clip.embed_images(images) * clip.embed_images(others)).sum(dim=1)).tolist()
