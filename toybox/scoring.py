"""Score a base model: the judge's accuracy on its images, beside that on renders of the same labels.

Images are generated with the library's own sampler. All seeds are fixed, so every base model gets the same prompts.
"""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

import numpy as np
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageOps
from torch import Tensor, nn

from hra_diffusion.evaluation.judge import Judge, classify, stack
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate_batch
from hra_diffusion.models.loading import load_base
from toybox.attributes import ATTRIBUTES
from toybox.autoencoder import mean_psnr
from toybox.captions import caption_of
from toybox.drawing import Rng
from toybox.judge import accuracy, label_targets
from toybox.labels import UNSEEN, Label, sample_pairs
from toybox.rendering import IMAGE_SIZE, render_image
from toybox.scenes import SCENES
from toybox.score import Score, Share
from toybox.shards import render_held_out
from toybox.sheet import contact_sheet
from training.data.decoding import load_photo
from training.data.photo_files import SUFFIXES

SCORE_SEED = 20_27
STEPS = 25
ATTRIBUTE_PAIRS = 100
BATCH = 16
SHEET_COLUMNS = 20

PLAIN_SCENES = [phrase for phrase in SCENES if phrase.startswith("on ") and phrase.endswith(" background")]


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
    pairs = [Label(*pair) for pair in sorted(UNSEEN)]
    with_attribute = sample_attribute_labels(rng, ATTRIBUTE_PAIRS)
    labels, count = [*pairs, *with_attribute], len(pairs)
    generated = [generate_labels(pipe, settings, labels, seed) for seed in range(seeds)]
    rendered = [render_labels(sprites, labels, seed) for seed in range(seeds)]
    if sheet is not None:
        contact_sheet(generated[0], SHEET_COLUMNS).save(sheet)
    objects, scenes, _ = compare(judge, pairs, *([images[:count] for images in kind] for kind in (generated, rendered)))
    objects_with_attribute, _, attributes = compare(
        judge, with_attribute, *([images[count:] for images in kind] for kind in (generated, rendered))
    )
    return Score(
        objects=objects,
        scenes=scenes,
        attributes=attributes,
        objects_with_attribute=objects_with_attribute,
        seconds=seconds_per_image(pipe, settings),
        psnr=mean_psnr(pipe.vae, render_held_out(sprites).values),
        photo_psnr=None if photos is None else mean_psnr(pipe.vae, load_photos(photos)),
        guidance_scale=guidance_scale,
        steps=STEPS,
        seeds=seeds,
        unet=unet_digest(pipe.unet),
    )


def sample_attribute_labels(rng: Rng, count: int) -> list[Label]:
    """Sample ``count`` different pairs of object and attribute, on plain backgrounds of another colour."""
    labels = []
    for name, attribute in sample_pairs(rng, ATTRIBUTES, count):
        scenes = [phrase for phrase in PLAIN_SCENES if not set(phrase.split()[2:-1]) & set(attribute.split())]
        labels.append(Label(name, scenes[rng.integers(len(scenes))], attribute))
    return labels


def generate_labels(
    pipe: StableDiffusionPipeline, settings: Settings, labels: Sequence[Label], seed: int
) -> list[Image.Image]:
    """Generate an image for each label's caption, each from different noise."""
    requests = [Request(caption_of(label), len(labels) * seed + number) for number, label in enumerate(labels)]
    return generate_batch(pipe, requests, settings, BATCH)


def render_labels(sprites: Path, labels: Sequence[Label], seed: int) -> list[Image.Image]:
    """Render an image for each label."""
    rng = np.random.default_rng((SCORE_SEED, seed))
    return [render_image(sprites, label, rng) for label in labels]


def compare(
    judge: Judge, labels: Sequence[Label], generated: Sequence[list[Image.Image]], rendered: Sequence[list[Image.Image]]
) -> list[Share]:
    """Accuracy for objects, scenes and attributes on generated and rendered images, both given for each seed."""
    shares, ceilings = ([accuracies(judge, labels, images) for images in seeds] for seeds in (generated, rendered))
    return [
        Share(mean(share), min(share), max(share), mean(ceiling))
        for share, ceiling in zip(zip(*shares, strict=True), zip(*ceilings, strict=True), strict=True)
    ]


def accuracies(judge: Judge, labels: Sequence[Label], images: Sequence[Image.Image]) -> tuple[float, float, float]:
    """Accuracy for objects, scenes and attributes against the labels."""
    predicted = classify(judge, stack(images))
    objects, scenes, attributes = label_targets(labels).T
    return (
        accuracy(predicted.objects, objects),
        accuracy(predicted.scenes, scenes),
        accuracy(predicted.attributes, attributes),
    )


def load_photos(folder: Path) -> Tensor:
    """Load all photos under a folder, center-cropped and resized: uint8 (N, IMAGE_SIZE, IMAGE_SIZE, 3).

    Raises FileNotFoundError if there is none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no photos in {folder}")
    return stack([ImageOps.fit(load_photo(path), (IMAGE_SIZE, IMAGE_SIZE)) for path in paths])


def seconds_per_image(pipe: StableDiffusionPipeline, settings: Settings, rounds: int = 5) -> float:
    """Median seconds per image, after a warm-up."""
    request = Request("a photo of a fox in the snow", 0)
    generate_batch(pipe, [request], settings)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        generate_batch(pipe, [request], settings)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def unet_digest(unet: nn.Module) -> str:
    """Return the first digits of the SHA-256 of a UNet's float16 weights."""
    sha = hashlib.sha256()
    for key, value in sorted(unet.state_dict().items()):
        sha.update(key.encode() + value.detach().half().cpu().numpy().tobytes())
    return sha.hexdigest()[:12]
