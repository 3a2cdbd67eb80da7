"""How like the photos pictures are, and how well they follow their prompts, in the eyes of a CLIP model.

CLIP-I and CLIP-T as DreamBooth's benchmark has them (Ruiz et al. 2023, arXiv 2208.12242, section 4.1): mean cosine
similarities. Both are proxies. Toybox brings a pair of its own, trained on the same world as the base: its numbers
compare adapters with each other, not with anything published.
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

from hra_diffusion.errors import UserError
from hra_diffusion.models.loading import LOADING, UNREADABLE
from hra_diffusion.models.prompts import without_weights
from hra_diffusion.models.sources import ASSETS, TOYBOX
from hra_diffusion.threads import sharing_cores

HUB_CLIP = "openai/clip-vit-base-patch32"
"""The model of the published figures."""


@dataclass(frozen=True)
class Score:
    """One picture's figures by a CLIP model; None for what was not measured.

    Likeness (cosines, −1 to 1): ``subject`` to the photos on average (CLIP-I), ``nearest`` to the nearest of them (near
    1: a copy), ``prompt`` to the prompt's words (CLIP-T). Unlikeness (1 − cosine, 0 to 2): ``variety`` to the column's
    other pictures of this prompt; ``drift`` of what the class noun alone gives to what it gives on the base.
    """

    subject: float | None
    prompt: float
    nearest: float | None = None
    variety: float | None = None
    drift: float | None = None


class Clip:
    """A CLIP model with its processor."""

    def __init__(self, source: str | Path, device: str = "cpu", at_hand: bool = False):
        """Load a folder or a hub id; ``at_hand``: only one that needs no download.

        Raises UserError if there is none, or it is damaged.
        """
        from transformers import CLIPModel, CLIPProcessor

        try:
            with LOADING:
                model: Any = CLIPModel.from_pretrained(source, dtype=torch.float32, local_files_only=at_hand)
            self.model: Any = model.eval().to(device)
            self.processor: Any = CLIPProcessor.from_pretrained(source, local_files_only=at_hand)
        except UNREADABLE as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"the CLIP model {source} for subject and prompt figures can't be loaded: {reason}"
            ) from None

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit rows (N, d) for N pictures."""
        pixels = self.processor.image_processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        parts = pixels["pixel_values"].to(self.model.device).split(64)
        with sharing_cores(self.model.device.type):
            found = [self.model.visual_projection(self.model.vision_model(part).pooler_output) for part in parts]
        return F.normalize(torch.cat(found), dim=-1).cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit rows (N, d) for N texts, cut to what the model reads."""
        tokens = self.processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        found = self.model.text_model(**tokens.to(self.model.device)).pooler_output
        return F.normalize(self.model.text_projection(found), dim=-1).cpu()


def source_for(base: str) -> str:
    """The CLIP model that judges a base's pictures: toybox's own pair, else the one of the published figures."""
    return str(ASSETS / f"{TOYBOX}-clip") if base == TOYBOX else HUB_CLIP


def find(base: str, wanted: str | None = None, device: str = "cpu") -> tuple[Clip | None, str]:
    """The CLIP model ``wanted`` ("none" for none), else the base's usual one; or None, and why there is none.

    Raises UserError for a wanted one that can't be loaded.
    """
    if wanted == "none":
        return None, ""
    try:
        return Clip(wanted or source_for(base), device), ""
    except UserError as error:
        if wanted:
            raise
        return None, str(error)


def scores(
    clip: Clip,
    pictures: Sequence[Image.Image],
    prompts: Sequence[str],
    photos: Sequence[Image.Image] = (),
    groups: Sequence[Hashable] = (),
) -> list[Score]:
    """The figures of each picture with its prompt (the class noun in it, not the trigger), against all photos.

    ``groups``: pictures of one group differ in their noise alone; their variety is told.
    """
    drawn, asked = clip.images(pictures), clip.texts([without_weights(prompt) for prompt in prompts])
    follows = (drawn * asked).sum(dim=1).tolist()
    nothing = [None] * len(follows)
    likes = drawn @ clip.images(photos).T if photos else None
    subjects = nothing if likes is None else likes.mean(dim=1).tolist()
    nearest = nothing if likes is None else likes.amax(dim=1).tolist()
    varieties = variety(drawn, groups) if groups else nothing
    return [Score(*figures) for figures in zip(subjects, follows, nearest, varieties, strict=True)]


def variety(images: Tensor, groups: Sequence[Hashable]) -> list[float | None]:
    """How unlike each image (unit rows) is to the others of its group on average; None for one that is alone."""
    found: list[float | None] = [None] * len(groups)
    for group in set(groups):
        members = [number for number, own in enumerate(groups) if own == group]
        likes = images[members] @ images[members].T
        for row, number in enumerate(members if len(members) > 1 else []):
            found[number] = 1 - (likes[row].sum().item() - likes[row, row].item()) / (len(members) - 1)
    return found


def clip_distance(clip: Clip, pictures: Sequence[Image.Image], others: Sequence[Image.Image]) -> list[float]:
    """1 − cosine of each picture and its counterpart: from 0 to 2."""
    return (1 - (clip.images(pictures) * clip.images(others)).sum(dim=1)).tolist()
