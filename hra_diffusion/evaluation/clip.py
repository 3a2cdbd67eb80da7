"""How like the photos pictures are, and how well they follow their prompts, in the eyes of a CLIP model.

CLIP-I and CLIP-T as DreamBooth's benchmark has them (Ruiz et al. 2023, arXiv 2208.12242, section 4.1): mean cosine
similarities. Both are proxies. Toybox brings a pair of its own, trained on the same world as the base: its numbers
compare adapters with each other, not with anything published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hra_diffusion.errors import UserError
from hra_diffusion.pipeline import ASSETS, TOYBOX

HUB_CLIP = "openai/clip-vit-base-patch32"
"""The model of the published figures."""


@dataclass(frozen=True)
class Score:
    """One picture's figures, cosines from −1 to 1. ``subject``: likeness to the photos (CLIP-I), None without photos;
    ``prompt``: likeness to the prompt's words (CLIP-T)."""

    subject: float | None
    prompt: float


class Clip:
    """A CLIP model with its processor."""

    def __init__(self, source: str | Path, device: str = "cpu"):
        """Load a folder or a hub id. Raises UserError if there is none, or it is damaged."""
        from transformers import CLIPModel, CLIPProcessor

        try:
            model: Any = CLIPModel.from_pretrained(source, dtype=torch.float32)
            self.model: Any = model.eval().to(device)
            self.processor: Any = CLIPProcessor.from_pretrained(source)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"the CLIP model {source} for subject and prompt figures can't be loaded: {reason}"
            ) from None

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit rows (N, d) for N pictures."""
        pixels = self.processor.image_processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        parts = pixels["pixel_values"].to(self.model.device).split(64)
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


def scores(
    clip: Clip, pictures: Sequence[Image.Image], prompts: Sequence[str], photos: Sequence[Image.Image] = ()
) -> list[Score]:
    """The figures of each picture with its prompt (the class noun in it, not the trigger), against all photos."""
    drawn, asked = clip.images(pictures), clip.texts(prompts)
    follows = (drawn * asked).sum(dim=1).tolist()
    likes = (drawn @ clip.images(photos).T).mean(dim=1).tolist() if photos else [None] * len(follows)
    return [Score(like, follow) for like, follow in zip(likes, follows, strict=True)]
