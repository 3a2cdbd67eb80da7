"""Figures of a cell's pictures, and the controls that show what the figures can tell apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from app.protocols.released import ReleasedScorer
from app.protocols.subjects import Subject
from hra_diffusion.evaluation import measures
from hra_diffusion.evaluation.clip import Clip, clip_distance, score_images
from hra_diffusion.evaluation.embedder import Embedder
from hra_diffusion.evaluation.judge import ToyboxJudge
from hra_diffusion.evaluation.lpips import Lpips
from training.data.dataset import load_dataset
from training.data.masks import grabcut, is_found
from training.data.photo import Upright


@dataclass(frozen=True)
class Figure:
    """A figure with its meaning. ``larger_is_better`` is None if neither is.

    ``per_prompt``: there is one value for each prompt, not for each picture.
    """

    name: str
    meaning: str
    larger_is_better: bool | None = True
    per_prompt: bool = False


FIGURES = {
    figure.name: figure
    for figure in (
        Figure("subject right", "share of the pictures in which toybox's judge sees the subject"),
        Figure("scene right", "share of the pictures in which the judge sees the scene of the prompt"),
        Figure("attribute right", "share of the pictures in which the judge sees the attribute of the prompt"),
        Figure("subject", "similarity to the photos (CLIP-I)"),
        Figure("dino", "similarity to the photos (DINO ViT-S/16)"),
        Figure("dinov2", "similarity to the photos (DINOv2 base)"),
        Figure("clip-l14", "similarity to the photos (CLIP ViT-L/14)"),
        Figure("efficientnet", "similarity to the photos (EfficientNet-Lite2, a proxy)"),
        Figure("prompt", "similarity to the prompt without the trigger (CLIP-T)"),
        Figure("variety", "CLIP distance between pictures of one prompt"),
        Figure("lpips", "LPIPS between pictures of one prompt (diversity)", per_prompt=True),
        Figure("drift", "CLIP distance of the class without the trigger from the base model's pictures", False, True),
        Figure("leakage", "similarity of the background to that of the most similar photo", False),
        Figure("nearest", "similarity to the nearest photo", None),
        Figure("copies", "share of the pictures that are nearer to a photo than any two photos are", False),
        Figure("shuffled", "similarity to the photos of another subject, a control", None),
    )
}


@dataclass(frozen=True)
class Control:
    """What the figures give for real photos of a subject.

    Attributes:
        real: mean similarity of each photo to the others: what a perfect picture would reach. None for one photo.
        copy_limit: the largest similarity of two different photos; a nearer picture counts as a copy. None for one.
        copied: similarity of a photo, saved as JPEG, to the nearest photo. It must exceed ``copy_limit``.
    """

    real: float | None
    copy_limit: float | None
    copied: float


@dataclass(frozen=True)
class Scorer:
    """Scores pictures by a CLIP model, by ``embedders`` of ``plan.METRICS`` and, on toybox's subjects, by its judge.

    ``size`` is the pictures' side. ``released`` adds the figures of HRA's released code.
    """

    subjects: Mapping[str, Subject]
    size: int
    clip: Clip | None = None
    judge: ToyboxJudge | None = None
    embedders: Mapping[str, Embedder] = field(default_factory=dict)
    lpips: Lpips | None = None
    released: ReleasedScorer | None = None

    @cached_property
    def _embeddings(self) -> dict[str, Tensor]:
        """Normalized embeddings (N, d) of each subject's reference photos."""
        clip = self.clip
        return (
            {name: clip.embed_images(self.photos(subject)) for name, subject in self.subjects.items()} if clip else {}
        )

    def photos(self, subject: Subject) -> list[Image.Image]:
        """Return a subject's reference photos, cropped to the size of the pictures."""
        return [photo.image for photo in load_dataset(subject.references, self.size).photos]

    def _backgrounds(self, subject: Subject) -> Tensor:
        """Return embeddings (N, d) of the backgrounds of the training photos that have masks."""
        assert self.clip is not None
        photos = load_dataset(subject.photos, self.size, mask="alpha").photos if find_spec("cv2") else ()
        masked = [measures.background(photo.image, photo.mask) for photo in photos if photo.mask]
        return self.clip.embed_images(masked) if masked else torch.zeros(0)

    def figures(
        self,
        subject: Subject,
        images: Sequence[Image.Image],
        pictures: int,
        of_class: tuple[Sequence[Image.Image], Sequence[Image.Image]] | None,
        released: bool = False,
    ) -> dict[str, list[float]]:
        """Return the figures of a subject's pictures by name, without those that can't be measured.

        Args:
            images: ``pictures`` for each prompt in turn.
            of_class: pictures of the class noun by an adapter, and at least as many of the base model.
            released: add the figures of the released code, if its models are loaded.
        """
        found: dict[str, list[float]] = {}
        if self.clip:
            found |= self._clip_figures(self.clip, subject, images, pictures)
            if len(backgrounds := self._backgrounds(subject)):
                own = self.clip.embed_images([_background(image) for image in images])
                found["leakage"] = measures.leakage(own, backgrounds).tolist()
            if of_class:
                ours, base = of_class
                found["drift"] = clip_distance(self.clip, ours, base[: len(ours)])
        for name, embedder in self.embedders.items():
            pictures_of, photos = (embedder.embed_images(part) for part in (images, self.photos(subject)))
            found[name] = measures.subject_fidelity(pictures_of, photos).tolist()
        if self.lpips:
            groups = [images[start : start + pictures] for start in range(0, len(images), pictures)]
            distances = (measures.diversity(self.lpips.pairwise(group)) for group in groups)
            found["lpips"] = [value for value in distances if value is not None]
        if released and self.released:
            found |= self.released.figures(subject, images, pictures)
        return found | (self._judge_figures(self.judge, subject, images, pictures) if self.judge else {})

    def _clip_figures(
        self, clip: Clip, subject: Subject, images: Sequence[Image.Image], pictures: int
    ) -> dict[str, list[float]]:
        prompts = [p.text.replace("{subject}", subject.class_noun) for p in subject.prompts for _ in range(pictures)]
        groups = [number for number in range(len(subject.prompts)) for _ in range(pictures)]
        scores = score_images(clip, images, prompts, self.photos(subject), groups)
        found = {
            name: [value for score in scores if (value := getattr(score, name)) is not None]
            for name in ("subject", "prompt", "nearest", "variety")
        }
        if (limit := self.control(subject).copy_limit) is not None:
            found["copies"] = [float(value > limit) for value in found["nearest"]]
        if others := [name for name in self.subjects if name != subject.name]:
            other = self._embeddings[others[list(self.subjects).index(subject.name) % len(others)]]
            found["shuffled"] = (clip.embed_images(images) @ other.T).mean(1).tolist()
        return {name: values for name, values in found.items() if values}

    def _judge_figures(
        self, judge: ToyboxJudge, subject: Subject, images: Sequence[Image.Image], pictures: int
    ) -> dict[str, list[float]]:
        pairs = list(zip([p for p in subject.prompts for _ in range(pictures)], judge.verdicts(images), strict=True))
        found = {
            "subject right": [float(seen.object == subject.name) for _, seen in pairs],
            "scene right": [float(seen.scene == prompt.scene) for prompt, seen in pairs if prompt.scene],
            "attribute right": [float(seen.attribute == p.attribute) for p, seen in pairs if p.attribute],
        }
        return {name: values for name, values in found.items() if values}

    def control(self, subject: Subject) -> Control:
        """Measure the control of a subject. Needs the CLIP model."""
        assert self.clip is not None
        own = self._embeddings[subject.name]
        copied = (self.clip.embed_images([_as_jpeg(self.photos(subject)[0])]) @ own.T).max().item()
        if len(own) < 2:
            return Control(None, None, copied)
        others = (own @ own.T)[~torch.eye(len(own), dtype=torch.bool)]
        return Control(others.mean().item(), others.max().item(), copied)


def _background(picture: Image.Image) -> Image.Image:
    """Return a picture's background: what GrabCut leaves, or all of the picture if that finds no subject."""
    mask = grabcut(Upright(picture, (1, 1), picture.size, ""), None)
    return measures.background(picture, mask) if is_found(mask) else picture


def _as_jpeg(image: Image.Image) -> Image.Image:
    """Return a copy of an image through JPEG compression, at 15 sixteenths of its size."""
    buffer = BytesIO()
    small = image.convert("RGB").resize((image.width * 15 // 16, image.height * 15 // 16), Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=85)
    return Image.open(buffer).convert("RGB")
