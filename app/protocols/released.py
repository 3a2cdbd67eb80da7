"""The scoring of HRA's released code, beside the corrected one, so that published tables can be compared.

Source: generation/subject/evaluate.py and get_result.py of DaShenZi721/HRA 8bfc9b0. Pictures that a safety checker has
blackened are left out there; none of these are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from app.protocols.plan import TRIGGER
from app.protocols.subjects import Subject
from hra_diffusion.evaluation import dino, measures
from hra_diffusion.evaluation.clip import HUB_CLIP_L14, Clip
from hra_diffusion.evaluation.dino import Dino
from hra_diffusion.evaluation.embedder import Embedder, TextEmbedder
from hra_diffusion.evaluation.lpips import Lpips
from training.data.decoding import load_photo

METRICS = ("DINO", "CLIP-I", "CLIP-T", "LPIPS")
RELEASED = ("released dino", "released clip-i", "released clip-t", "released lpips")
"""The figures that published tables show."""
STRIPPED, TRIGGER_KEPT = "released clip-t, no trigger", "released clip-t, own text"
LPIPS_SIDE = 512


@dataclass(frozen=True)
class Scoring:
    """One way to score: the figures that it shows as ``METRICS``. ``best``: of each prompt's best checkpoint."""

    title: str
    figures: tuple[str, ...]
    best: bool = False


SCORINGS = (
    Scoring("corrected", ("dino", "subject", "prompt", "lpips")),
    Scoring("released models and photos", (*RELEASED[:2], STRIPPED, RELEASED[3])),
    Scoring("+ trigger in the text", (*RELEASED[:2], TRIGGER_KEPT, RELEASED[3])),
    Scoring("+ live subjects' text for objects", RELEASED),
    Scoring("+ best checkpoint of each prompt: as released", RELEASED, best=True),
)
"""From the corrected scoring to the released one, a fault at a time."""


@dataclass(frozen=True)
class ReleasedScorer:
    """Scores pictures with the released code's models, texts and photos, which are not cropped.

    Attributes:
        dino: with the hub's preprocessing.
        clip: ViT-L/14, for CLIP-I and CLIP-T.
        lpips: with VGG16. It compares photos with pictures, at 512 × 512 pixels, and larger counts as better.
    """

    dino: Embedder
    clip: TextEmbedder
    lpips: Lpips

    @classmethod
    def load(cls, lpips: Lpips, sources: Mapping[str, str], device: str = "cpu") -> "ReleasedScorer":
        """Load the models from a plan's sources or else from the hub. Raises UserError if one is missing."""
        vit = Dino(sources.get("dino", dino.HUB_DINO), device, dino.HUB_PROCESSOR)
        return cls(vit, Clip(sources.get("clip-l14", HUB_CLIP_L14), device), lpips)

    def figures(self, subject: Subject, images: Sequence[Image.Image], pictures: int) -> dict[str, list[float]]:
        """Return the figures of a subject's pictures, ``pictures`` for each prompt in turn."""
        photos = [load_photo(path) for path in subject.photos]
        drawn = self.clip.embed_images(images)
        by_dino = measures.subject_fidelity(self.dino.embed_images(images), self.dino.embed_images(photos))
        by_lpips = self.lpips.between(map(_resized, images), map(_resized, photos)).mean(dim=1)
        noun, words = subject.class_noun, f"{TRIGGER} {subject.class_noun}"
        texts = {
            STRIPPED: [prompt.text.replace("{subject}", noun) for prompt in subject.prompts],
            TRIGGER_KEPT: [prompt.text.replace("{subject}", words) for prompt in subject.prompts],
            RELEASED[2]: [(prompt.released or prompt.text).replace("{subject}", words) for prompt in subject.prompts],
        }
        found = {
            name: measures.prompt_fidelity(drawn, self.clip.embed_texts(own).repeat_interleave(pictures, dim=0))
            for name, own in texts.items()
        }
        found[RELEASED[0]], found[RELEASED[3]] = by_dino, by_lpips
        found[RELEASED[1]] = measures.subject_fidelity(drawn, self.clip.embed_images(photos))
        return {name: values.tolist() for name, values in found.items()}


def _resized(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize((LPIPS_SIDE, LPIPS_SIDE), Image.Resampling.BILINEAR)


def best_of_checkpoints(candidates: Sequence[Mapping[str, Sequence[float]]], pictures: int) -> dict[str, list[float]]:
    """Return the released figures of each prompt's best checkpoint.

    The best has the largest sum of the prompt's means, each divided by its range over the checkpoints; the first of
    equals. A figure that is the same for all checkpoints counts nothing.

    Args:
        candidates: figures of each checkpoint, in the order of the steps.
        pictures: of each prompt, in turn.
    """
    values = np.array([[figures[name] for name in RELEASED] for figures in candidates])
    means = values.reshape(*values.shape[:2], -1, pictures).mean(-1)  # (checkpoints, figures, prompts)
    spans = np.ptp(means, axis=0)
    scaled = np.divide(means, spans, out=np.zeros_like(means), where=spans > 0)
    best = scaled.sum(1).argmax(0).repeat(pictures)
    chosen = values[best, :, np.arange(len(best))].T
    return dict(zip(RELEASED, chosen.tolist(), strict=True))
