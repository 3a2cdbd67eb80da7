"""The score of a base: what the judge sees in its pictures, beside what it sees in renders of the same labels.

Pictures come from the product's own sampler. Everything is drawn from fixed seeds, so two bases are asked the same.
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
from toybox.autoencoder import measure
from toybox.captions import caption_of
from toybox.judge import Judge, examine, number_labels, share_right
from toybox.looks import LOOKS
from toybox.scenes import SCENES, Rng
from toybox.shards import render_held_out, stack
from toybox.sheet import contact_sheet
from toybox.world import PICTURE_SIZE, UNSEEN, Label, draw_pairs, photograph
from training.data.decoding import load_photo
from training.data.photo_files import SUFFIXES

SCORE_SEED = 20_27
STEPS = 25
DRESSED = 100
BATCH = 16
SHEET_COLUMNS = 20

PLAIN_SCENES = [phrase for phrase in SCENES if phrase.startswith("on ") and phrase.endswith(" background")]


@dataclass(frozen=True)
class Share:
    """A share of pictures that are right: over all seeds, at the worst and the best seed, and of renders."""

    mean: float
    least: float
    most: float
    ceiling: float


@dataclass(frozen=True)
class Score:
    """What was measured of a base.

    Shares of pictures with the thing, the scene and the look that the prompt asks for, and with the thing where a look
    is asked for as well; seconds for one picture; the autoencoder's PSNR in dB for renders of held-out things and for
    photos, if there were any; and how it was drawn.
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
    """Digest of the UNet that drew: a score is of no other."""


def score_base(
    model: Path,
    judge: Judge,
    sprites: Path,
    photos: Path | None,
    seeds: int = 4,
    guidance_scale: float = 3.0,
    sheet: Path | None = None,
) -> Score:
    """Measure the pipeline folder `model`; `photos` is a folder of real ones, `sheet` where pictures are kept."""
    pipe = load_base(str(model))
    settings = Settings(steps=STEPS, guidance_scale=guidance_scale)
    rng = np.random.default_rng(SCORE_SEED)
    pairs, dressed = [Label(*pair) for pair in sorted(UNSEEN)], draw_dressed(rng, DRESSED)
    drawn = [paint(pipe, settings, [*pairs, *dressed], seed) for seed in range(seeds)]
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


def draw_dressed(rng: Rng, count: int) -> list[Label]:
    """`count` different pairs of a named thing and a look, before plain backdrops of another colour than the look's."""
    labels = []
    for thing, look in draw_pairs(rng, LOOKS, count):
        scenes = [phrase for phrase in PLAIN_SCENES if not set(phrase.split()[2:-1]) & set(look.split())]
        labels.append(Label(thing, scenes[rng.integers(len(scenes))], look=look))
    return labels


def paint(pipe: StableDiffusionPipeline, settings: Settings, labels: Sequence[Label], seed: int) -> list[Image.Image]:
    """The base's picture of each label's caption, each from noise of its own."""
    requests = [Request(caption_of(label), len(labels) * seed + number) for number, label in enumerate(labels)]
    return generate_batch(pipe, requests, settings, BATCH)


def render_labels(sprites: Path, labels: Sequence[Label], seed: int) -> list[Image.Image]:
    """The world's own picture of each label."""
    rng = np.random.default_rng((SCORE_SEED, seed))
    return [photograph(sprites, label, rng) for label in labels]


def compare(
    judge: Judge, labels: Sequence[Label], drawn: Sequence[list[Image.Image]], rendered: Sequence[list[Image.Image]]
) -> list[Share]:
    """How often things, scenes and looks are right in drawn pictures, and in renders, a list for each seed."""
    drawn_right, rendered_right = (
        [shares_right(judge, labels, pictures) for pictures in by_seed] for by_seed in (drawn, rendered)
    )
    return [
        Share(mean(found), min(found), max(found), mean(ceiling))
        for found, ceiling in zip(zip(*drawn_right, strict=True), zip(*rendered_right, strict=True), strict=True)
    ]


def shares_right(judge: Judge, labels: Sequence[Label], pictures: Sequence[Image.Image]) -> tuple[float, float, float]:
    """The shares of pictures whose thing, scene and look the judge finds as labelled."""
    verdict = examine(judge, stack(pictures))
    things, scenes, looks = number_labels(labels).T
    return (
        share_right(verdict.things, things),
        share_right(verdict.scenes, scenes),
        share_right(verdict.looks, looks),
    )


def load_photos(folder: Path) -> Tensor:
    """Every photo under a folder, cut to its middle square, at the base's size: uint8 (N, H, W, 3)."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no photos in {folder}")
    return stack([ImageOps.fit(load_photo(path), (PICTURE_SIZE, PICTURE_SIZE)) for path in paths])


def time_picture(pipe: StableDiffusionPipeline, settings: Settings, rounds: int = 5) -> float:
    """Seconds for one picture: the median of some, after one that warms up."""
    request = Request("a photo of a fox in the snow", 0)
    generate_batch(pipe, [request], settings)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        generate_batch(pipe, [request], settings)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def digest(unet: nn.Module) -> str:
    """The first digits of the SHA-256 of a UNet's weights in float16, as they are stored."""
    told = hashlib.sha256()
    for key, value in sorted(unet.state_dict().items()):
        told.update(key.encode() + value.detach().half().cpu().numpy().tobytes())
    return told.hexdigest()[:12]


def save_score(score: Score, path: Path) -> None:
    """Write a score as JSON, whole or not at all."""
    write_text(path, json.dumps(asdict(score), indent=2) + "\n")


def load_score(path: Path) -> Score:
    """Read what `save_score` wrote. Raises FileNotFoundError when there is none yet."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    return Score(**fields | {name: Share(**fields[name]) for name in ("things", "scenes", "looks", "dressed")})


BARS = {"things": 0.8, "scenes": 0.95, "looks": 0.7, "decibels": 28.0, "seconds": 2.0}
"""What is wanted of a base, by the names of Score's fields."""


def table(score: Score, bars: Mapping[str, float] = MappingProxyType(BARS)) -> str:
    """A score as a Markdown table, beside what is wanted."""
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
    """What is wanted of a field in words, or nothing."""
    return wording.format(bars[field]) if field in bars else ""
