"""Score a base model: the judge's accuracy on its images, beside that on renders of the same labels.

Images are generated with the library's own sampler. All seeds are fixed, so every base model gets the same prompts.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from types import MappingProxyType

import numpy as np
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageOps
from torch import Tensor, nn

from hra_diffusion.files import write_text
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate_batch
from hra_diffusion.models.loading import load_base
from toybox.attributes import ATTRIBUTES
from toybox.autoencoder import measure
from toybox.captions import caption_of
from toybox.drawing import Rng
from toybox.judge import Judge, accuracy, examine, label_targets
from toybox.labels import UNSEEN, Label, sample_pairs
from toybox.rendering import IMAGE_SIZE, render_image
from toybox.scenes import SCENES
from toybox.shards import render_held_out, stack
from toybox.sheet import contact_sheet
from training.data.decoding import load_photo
from training.data.photo_files import SUFFIXES

SCORE_SEED = 20_27
STEPS = 25
ATTRIBUTE_PAIRS = 100
BATCH = 16
SHEET_COLUMNS = 20

PLAIN_SCENES = [phrase for phrase in SCENES if phrase.startswith("on ") and phrase.endswith(" background")]


@dataclass(frozen=True)
class Share:
    """Share of correct images: mean over the seeds, worst and best seed, and the share of renders (the ceiling)."""

    mean: float
    least: float
    most: float
    ceiling: float


@dataclass(frozen=True)
class Score:
    """Measurements of a base model. Field names are the keys of score.json.

    ``things``, ``scenes``, ``looks``: accuracy for objects, scenes and attributes; ``dressed``: for objects if the
    prompt also names an attribute. ``seconds``: per image. ``decibels``, ``photo_decibels``: PSNR of the autoencoder on
    renders of held-out objects and on photos.
    """

    things: Share
    scenes: Share
    looks: Share
    dressed: Share
    seconds: float
    decibels: float
    photo_decibels: float | None
    guidance_scale: float
    steps: int
    seeds: int
    unet: str = ""
    """Digest of the UNet that was scored."""


def score_base(
    model: Path,
    judge: Judge,
    sprites: Path,
    photos: Path | None,
    seeds: int = 4,
    guidance_scale: float = 3.0,
    sheet: Path | None = None,
) -> Score:
    """Score the pipeline folder ``model``; ``photos``: folder of real photos, ``sheet``: file for a contact sheet."""
    pipe = load_base(str(model))
    settings = Settings(steps=STEPS, guidance_scale=guidance_scale)
    rng = np.random.default_rng(SCORE_SEED)
    pairs, dressed = [Label(*pair) for pair in sorted(UNSEEN)], sample_attribute_labels(rng, ATTRIBUTE_PAIRS)
    drawn = [generate_labels(pipe, settings, [*pairs, *dressed], seed) for seed in range(seeds)]
    rendered = [render_labels(sprites, [*pairs, *dressed], seed) for seed in range(seeds)]
    if sheet is not None:
        contact_sheet(drawn[0], SHEET_COLUMNS).save(sheet)
    placed, worn = slice(len(pairs)), slice(len(pairs), None)
    things, scenes, _ = compare(judge, pairs, *([part[placed] for part in parts] for parts in (drawn, rendered)))
    under, _, looks = compare(judge, dressed, *([part[worn] for part in parts] for parts in (drawn, rendered)))
    return Score(
        things=things,
        scenes=scenes,
        looks=looks,
        dressed=under,
        seconds=time_picture(pipe, settings),
        decibels=measure(pipe.vae, render_held_out(sprites).values),
        photo_decibels=None if photos is None else measure(pipe.vae, load_photos(photos)),
        guidance_scale=guidance_scale,
        steps=STEPS,
        seeds=seeds,
        unet=digest(pipe.unet),
    )


def sample_attribute_labels(rng: Rng, count: int) -> list[Label]:
    """Sample ``count`` different pairs of object and look, on plain backgrounds of another colour than the look's."""
    labels = []
    for thing, look in sample_pairs(rng, ATTRIBUTES, count):
        scenes = [phrase for phrase in PLAIN_SCENES if not set(phrase.split()[2:-1]) & set(look.split())]
        labels.append(Label(thing, scenes[rng.integers(len(scenes))], attribute=look))
    return labels


def generate_labels(
    pipe: StableDiffusionPipeline, settings: Settings, labels: Sequence[Label], seed: int
) -> list[Image.Image]:
    """Generate an image for each label's caption, each from different noise."""
    requests = [Request(caption_of(label), len(labels) * seed + number) for number, label in enumerate(labels)]
    return generate_batch(pipe, requests, settings, BATCH)


def render_labels(sprites: Path, labels: Sequence[Label], seed: int) -> list[Image.Image]:
    """Render each label."""
    rng = np.random.default_rng((SCORE_SEED, seed))
    return [render_image(sprites, label, rng) for label in labels]


def compare(
    judge: Judge, labels: Sequence[Label], drawn: Sequence[list[Image.Image]], rendered: Sequence[list[Image.Image]]
) -> list[Share]:
    """Accuracy for objects, scenes and attributes on generated and rendered images, both given for each seed."""
    drawn_right, rendered_right = (
        [accuracies(judge, labels, pictures) for pictures in by_seed] for by_seed in (drawn, rendered)
    )
    return [
        Share(mean(found), min(found), max(found), mean(ceiling))
        for found, ceiling in zip(zip(*drawn_right, strict=True), zip(*rendered_right, strict=True), strict=True)
    ]


def accuracies(judge: Judge, labels: Sequence[Label], pictures: Sequence[Image.Image]) -> tuple[float, float, float]:
    """Accuracy of objects, scenes and attributes against the labels."""
    verdict = examine(judge, stack(pictures))
    things, scenes, looks = label_targets(labels).T
    return (
        accuracy(verdict.objects, things),
        accuracy(verdict.scenes, scenes),
        accuracy(verdict.attributes, looks),
    )


def load_photos(folder: Path) -> Tensor:
    """Load all photos under a folder, center-cropped and resized: uint8 (N, IMAGE_SIZE, IMAGE_SIZE, 3)."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no photos in {folder}")
    return stack([ImageOps.fit(load_photo(path), (IMAGE_SIZE, IMAGE_SIZE)) for path in paths])


def time_picture(pipe: StableDiffusionPipeline, settings: Settings, rounds: int = 5) -> float:
    """Median seconds per image, after a warm-up."""
    request = Request("a photo of a fox in the snow", 0)
    generate_batch(pipe, [request], settings)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        generate_batch(pipe, [request], settings)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def digest(unet: nn.Module) -> str:
    """Return the first digits of the SHA-256 of a UNet's float16 weights."""
    sha = hashlib.sha256()
    for key, value in sorted(unet.state_dict().items()):
        sha.update(key.encode() + value.detach().half().cpu().numpy().tobytes())
    return sha.hexdigest()[:12]


def save_score(score: Score, path: Path) -> None:
    """Write a score as JSON atomically."""
    write_text(path, json.dumps(asdict(score), indent=2) + "\n")


def load_score(path: Path) -> Score:
    """Read a score written by ``save_score``. Raises FileNotFoundError if there is none."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    return Score(**fields | {name: Share(**fields[name]) for name in ("things", "scenes", "looks", "dressed")})


TARGETS = {"things": 0.8, "scenes": 0.95, "looks": 0.7, "decibels": 28.0, "seconds": 2.0}
"""Targets by field of Score."""


def table(score: Score, bars: Mapping[str, float] = MappingProxyType(TARGETS)) -> str:
    """Format a score as a Markdown table with its targets."""
    shares = {
        "Thing right": "things", "Scene right": "scenes", "Look right": "looks", "Thing right in that look": "dressed",
    }  # fmt: skip
    rows = [("", "figure", "spread over seeds", "renders", "bar")]
    for title, field in shares.items():
        share: Share = getattr(score, field)
        spread = f"{share.least:.1%}–{share.most:.1%}"
        rows.append((title, f"{share.mean:.1%}", spread, f"{share.ceiling:.1%}", bar(bars, field, "≥ {:.0%}")))
    decibels = "≥ {:.1f} dB"
    rows.append(("Round trip, held-out things", f"{score.decibels:.1f} dB", "", "", bar(bars, "decibels", decibels)))
    if score.photo_decibels is not None:
        figure = f"{score.photo_decibels:.1f} dB"
        rows.append(("Round trip, photos", figure, "", "", bar(bars, "photo_decibels", decibels)))
    figure = f"{score.seconds:.2f} s"
    rows.append((f"One picture, {score.steps} steps", figure, "", "", bar(bars, "seconds", "≤ {:.2f} s")))
    header, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([header, "|---|---|---|---|---|", *body])


def bar(bars: Mapping[str, float], field: str, wording: str) -> str:
    """Format a field's target, or return "" if it has none."""
    return wording.format(bars[field]) if field in bars else ""
