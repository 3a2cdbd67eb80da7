"""Comparisons: prompts × seeds × variants, every row from the same initial noise."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

from hra_diffusion.adapters.state import Fusion
from hra_diffusion.evaluation.clip import Clip, Score, clip_distance, score_images
from hra_diffusion.generation.captured import CudaGraph
from hra_diffusion.generation.png import PNG_KEY, describe
from hra_diffusion.generation.previews import OnStep
from hra_diffusion.generation.requests import FullSettings, Request, Settings, complete_settings, prompt_notes
from hra_diffusion.generation.sampling import generate_batch
from hra_diffusion.generation.subjects import PLACEHOLDER, with_subjects
from hra_diffusion.locks import lock_of
from hra_diffusion.pipeline import subject_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

BASE = "base"
"""Label of the variant without adapters."""


@dataclass(frozen=True)
class Variant:
    """One side of a comparison: adapters with their strengths; {} for the base model. ``fusion`` as in ``Request``.

    ``subject`` replaces ``{subject}`` in prompts; by default it is that of the first adapter, or without one that is
    known the first class noun among the variants. For scoring, ``class_noun`` does, because a CLIP model does not know
    the trigger. ``costs`` are known facts about the adapters: "seconds" and "memory" (GiB) of training, "parameters",
    "megabytes" of the file.
    """

    label: str
    adapters: Mapping[str, float]
    subject: str = ""
    class_noun: str = ""
    costs: Mapping[str, float] = field(default_factory=dict)
    fusion: Fusion = "compose"


@dataclass(frozen=True)
class Sample:
    """An image of a comparison with its variant's label and its request."""

    variant: str
    request: Request
    image: Image.Image
    score: Score | None = None


@dataclass(frozen=True)
class Comparison:
    """A finished comparison. ``samples`` are ordered by prompt, then seed, then variant.

    ``photos`` are the reference photos; ``notes`` are the prompt notes; ``seconds`` is the time of generation.
    """

    variants: tuple[Variant, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    samples: tuple[Sample, ...]
    settings: FullSettings
    seconds: float
    photos: tuple[Image.Image, ...] = ()
    notes: tuple[str, ...] = ()

    def row(self, prompt: int, seed: int) -> tuple[Sample, ...]:
        """Return the samples of one prompt and seed (indices), one per variant."""
        start = (prompt * len(self.seeds) + seed) * len(self.variants)
        return self.samples[start : start + len(self.variants)]

    def samples_of(self, variant: int) -> tuple[Sample, ...]:
        """Return the samples of one variant (index), one per prompt and seed."""
        return self.samples[variant :: len(self.variants)]


def compare(
    pipe: StableDiffusionPipeline,
    variants: Sequence[Variant],
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings | None = None,
    photos: Sequence[Image.Image] = (),
    negative_prompt: str = "",
    batch_size: int = 8,
    on_step: OnStep | None = None,
    clip: Clip | None = None,
    drift: bool = False,
    cuda_graph: CudaGraph = "auto",
) -> Comparison:
    """Generate every prompt with every variant and seed. Variants share denoising batches.

    Each image equals the one that ``generate`` makes from its request. The pipeline's lock is held meanwhile, as there.

    Args:
        on_step: called after every denoising step with the indices of the samples.
        clip: scores every sample.
        drift: measure the drift of the class noun, too; needs ``clip`` and the extra images of ``drift_pairs``.
        cuda_graph: see ``generate_batch``.
    """
    pairs = drift_pairs(variants, prompts, seeds[0], negative_prompt) if drift and clip else {}
    extra = list(dict.fromkeys(request for pair in pairs.values() for request in pair))
    with lock_of(pipe):
        full = complete_settings(pipe, settings or Settings())
        variants = _with_subjects(pipe, variants)
        requests = with_subjects(pipe, _requests(variants, prompts, seeds, negative_prompt))
        start = time.perf_counter()
        images = generate_batch(pipe, [*requests, *extra], full, batch_size, on_step, cuda_graph)
        seconds = time.perf_counter() - start
        for request, image in zip(requests, images, strict=False):
            image.info[PNG_KEY] = describe(pipe, request, full)
    images, extra_images = images[: len(requests)], dict(zip(extra, images[len(requests) :], strict=True))
    scored: Sequence[Score | None] = [None] * len(images)
    if clip is not None:
        scored = _score(clip, images, variants, prompts, len(seeds), photos, _drifts(clip, pairs, extra_images))
    labels = [variant.label for variant in variants] * (len(prompts) * len(seeds))
    samples = tuple(Sample(*sample) for sample in zip(labels, requests, images, scored, strict=True))
    notes = tuple(prompt_notes(pipe, requests))
    return Comparison(tuple(variants), tuple(prompts), tuple(seeds), samples, full, seconds, tuple(photos), notes)


def _with_subjects(pipe: StableDiffusionPipeline, variants: Sequence[Variant]) -> list[Variant]:
    """Fill in the subjects that are not given: that of the first adapter if it is known, else the first class noun."""
    noun = next((variant.class_noun for variant in variants if variant.class_noun), "")
    known = (
        variant.subject or "".join(subject_of(pipe, name) for name in [*variant.adapters][:1]) for variant in variants
    )
    return [dataclasses.replace(variant, subject=own or noun) for variant, own in zip(variants, known, strict=True)]


def _requests(
    variants: Sequence[Variant], prompts: Sequence[str], seeds: Sequence[int], negative_prompt: str
) -> list[Request]:
    """Return the requests by prompt, then seed, then variant. ``{subject}`` remains for a variant without a subject."""
    return [
        Request(
            prompt.replace(PLACEHOLDER, variant.subject or PLACEHOLDER),
            seed,
            tuple(variant.adapters.items()),
            negative_prompt,
            variant.fusion,
        )
        for prompt in prompts
        for seed in seeds
        for variant in variants
    ]


Group = tuple[str, int]
"""A prompt and the index of a variant: samples of one group differ only in their noise."""


def drift_pairs(
    variants: Sequence[Variant], prompts: Sequence[str], seed: int, negative_prompt: str = ""
) -> dict[Group, tuple[Request, Request]]:
    """Return a pair of requests per prompt and variant: the class noun without the trigger, with and without adapters.

    Both start from the same noise. Variants without adapters or without a class noun have no pair.
    """
    return {
        (prompt, index): (
            Request(plain, seed, tuple(variant.adapters.items()), negative_prompt, variant.fusion),
            Request(plain, seed, (), negative_prompt),
        )
        for index, variant in enumerate(variants)
        if variant.adapters and variant.class_noun
        for prompt in prompts
        for plain in [prompt.replace(PLACEHOLDER, variant.class_noun)]
    }


def _drifts(
    clip: Clip, pairs: Mapping[Group, tuple[Request, Request]], images: Mapping[Request, Image.Image]
) -> dict[Group, float]:
    if not pairs:
        return {}
    adapted, originals = ([images[request] for request in side] for side in zip(*pairs.values(), strict=True))
    return dict(zip(pairs, clip_distance(clip, adapted, originals), strict=True))


def _score(
    clip: Clip,
    images: Sequence[Image.Image],
    variants: Sequence[Variant],
    prompts: Sequence[str],
    seeds: int,
    photos: Sequence[Image.Image],
    drifts: Mapping[Group, float],
) -> list[Score]:
    groups = [(prompt, index) for prompt in prompts for _ in range(seeds) for index in range(len(variants))]
    nouns = [variant.class_noun or variant.subject for variant in variants]
    texts = [prompt.replace(PLACEHOLDER, nouns[index]) for prompt, index in groups]
    found = score_images(clip, images, texts, photos, groups)
    return [dataclasses.replace(score, drift=drifts.get(group)) for score, group in zip(found, groups, strict=True)]
