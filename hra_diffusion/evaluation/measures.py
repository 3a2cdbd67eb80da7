"""Measures of a subject's pictures, as functions of normalized embeddings (N, d).

All are proxies of what a person sees. Which model embeds is up to the caller (``metrics.find``); figures of different
models are not comparable.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

COPY = 0.96
"""Similarity to a photo from which a picture counts as its copy.

By EfficientNet-Lite2 none of 50 photos of ten DreamBooth subjects is as similar to another, and of their copies 46 with
1.2 times the brightness, 31 mirrored, 21 cropped to 90 % of each side and 16 saved as JPEG of quality 30 are as similar
to the original. By toybox's CLIP 8 of the photos count as copies of another. Not measured for other models:
``hra-diffusion benchmark`` takes the largest similarity of two different photos of the subject instead.
"""


class Nearest(NamedTuple):
    """The nearest photo of each of N pictures: cosine similarity, index, and whether the picture counts as a copy."""

    similarity: Tensor
    photo: Tensor
    copied: Tensor


def subject_fidelity(pictures: Tensor, photos: Tensor) -> Tensor:
    """Return each picture's mean cosine similarity to the photos (N,): CLIP-I and DINO of DreamBooth, section 4.1."""
    return (pictures @ photos.T).mean(dim=1)


def prompt_fidelity(pictures: Tensor, texts: Tensor) -> Tensor:
    """Return each picture's cosine similarity to its text (N,): CLIP-T of DreamBooth, section 4.1.

    The texts must be embedded without the trigger, which no text encoder knows: see ``subjects.without_trigger``.
    """
    return (pictures * texts).sum(dim=1)


def drift(pictures: Tensor, originals: Tensor) -> Tensor:
    """Return 1 − cosine similarity (N,), 0 to 2, of each picture and the base model's of the same prompt and noise."""
    return 1 - (pictures * originals).sum(dim=1)


def nearest_photo(pictures: Tensor, photos: Tensor, copy: float = COPY) -> Nearest:
    """Return the nearest photo of each picture; from a similarity of ``copy`` on, the picture counts as a copy."""
    similarity, photo = (pictures @ photos.T).max(dim=1)
    return Nearest(similarity, photo, similarity >= copy)


def variety(embeddings: Tensor, groups: Sequence[Hashable]) -> list[float | None]:
    """Return each image's mean distance (1 − cosine) from the others of its group; None if there are no others."""
    result: list[float | None] = [None] * len(groups)
    for group in set(groups):
        members = [index for index, own in enumerate(groups) if own == group]
        similarities = embeddings[members] @ embeddings[members].T
        for row, index in enumerate(members if len(members) > 1 else []):
            others = similarities[row].sum().item() - similarities[row, row].item()
            result[index] = 1 - others / (len(members) - 1)
    return result


def diversity(distances: Tensor) -> float | None:
    """Return the mean distance between two of N pictures of one prompt, from all distances (N, N); None for N < 2.

    With ``Lpips.pairwise`` this is DIV of DreamBooth (arXiv 2208.12242, ablation of prior preservation);
    ``embedding_distances`` need no weights of LPIPS.
    """
    count = len(distances)
    return (distances.sum() - distances.trace()).item() / (count * (count - 1)) if count > 1 else None


def embedding_distances(embeddings: Tensor) -> Tensor:
    """Return 1 − cosine similarity (N, N), 0 to 2, of all pairs."""
    return 1 - embeddings @ embeddings.T


def leakage(backgrounds: Tensor, photo_backgrounds: Tensor) -> Tensor:
    """Return how similar each picture's background is to the most similar background of the photos (N,).

    Both are embeddings of ``background``. Two unrelated backgrounds are similar, too: compare with the base model's
    pictures of the same prompts.
    """
    return (backgrounds @ photo_backgrounds.T).amax(dim=1)


def background(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Return an image with the mean colour of its background in place of the subject, whose outline remains visible.

    Args:
        mask: greyscale, white for the subject, of any size.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    outside = 1 - np.asarray(mask.convert("L").resize(image.size), dtype=np.float32)[..., None] / 255
    mean = (outside * pixels).sum((0, 1)) / max(outside.sum(), 1)
    return Image.fromarray((outside * pixels + (1 - outside) * mean).round().astype(np.uint8))
