"""Prompts × (base + adapters) × seeds from the same noise: the pictures, a labelled grid, the facts as JSON."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from hra_diffusion.errors import UserError
from hra_diffusion.evaluation.clip import Clip, Score, clip_distance, scores
from hra_diffusion.files import write_text
from hra_diffusion.generation.png import PNG_KEY, describe, read_image, save_png, slug
from hra_diffusion.generation.previews import OnStep
from hra_diffusion.generation.requests import (
    SIZE_CONDITIONING,
    FullSettings,
    Request,
    Settings,
    complete_settings,
    prompt_notes,
)
from hra_diffusion.generation.sampling import generate_batch

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

BASE = "base"
GAP, MARGIN = 6, 14
PHOTO_SIDE = 512
"""Reference photos are kept beside a comparison to be looked at, no larger than this."""


@dataclass(frozen=True)
class Variant:
    """One contestant: a label, the adapters it applies, and what ``{subject}`` in a prompt becomes for it.

    With ``class_noun`` in its place a prompt is scored: a trigger means nothing to a CLIP model. ``costs``: what the
    adapters took ("seconds" of training, "parameters", "megabytes" of the file), as far as it is known.
    """

    label: str
    adapters: Mapping[str, float]
    subject: str = ""
    class_noun: str = ""
    costs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One picture of a comparison with the request that made it."""

    column: str
    request: Request
    image: Image.Image
    score: Score | None = None


@dataclass(frozen=True)
class Comparison:
    """A finished comparison. ``cells`` go by prompt, then seed, then column; ``photos`` are the references.

    ``notes``: words beyond the text encoder's length and weights read as text (see prompts.notes).
    """

    columns: tuple[Variant, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[Sample, ...]
    settings: FullSettings
    seconds: float
    photos: tuple[Image.Image, ...] = ()
    notes: tuple[str, ...] = ()

    def row(self, prompt: int, seed: int) -> tuple[Sample, ...]:
        """The cells of one prompt and seed (by index), one a column."""
        start = (prompt * len(self.seeds) + seed) * len(self.columns)
        return self.cells[start : start + len(self.columns)]


def compare(
    pipe: StableDiffusionPipeline,
    columns: Sequence[Variant],
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings | None = None,
    photos: Sequence[Image.Image] = (),
    negative_prompt: str = "",
    batch_size: int = 8,
    on_step: OnStep | None = None,
    clip: Clip | None = None,
    drift: bool = False,
) -> Comparison:
    """Draw every prompt with every column from the same initial noise; adapters share denoising batches.

    ``columns`` may include the base (no adapters). Each picture equals the one ``generate`` makes of its request.
    ``on_step`` is told of every denoising step, the cells by their index. With a ``clip`` every cell is scored, and
    with ``drift`` so is what else has changed, for which ``drift_pairs`` more pictures are drawn.
    """
    full = complete_settings(pipe, settings or Settings())
    requests = [
        Request(prompt.replace("{subject}", column.subject), seed, tuple(column.adapters.items()), negative_prompt)
        for prompt in prompts
        for seed in seeds
        for column in columns
    ]
    plain = drift_pairs(columns, prompts, seeds[0], negative_prompt) if drift and clip else {}
    more = list(dict.fromkeys(request for pair in plain.values() for request in pair))
    start = time.perf_counter()
    pictures = generate_batch(pipe, [*requests, *more], full, batch_size, on_step)
    seconds = time.perf_counter() - start
    drawn = dict(zip(more, pictures[len(requests) :], strict=True))
    pictures = pictures[: len(requests)]
    for request, picture in zip(requests, pictures, strict=True):
        picture.info[PNG_KEY] = describe(pipe, request, full)
    labels = [column.label for column in columns] * (len(prompts) * len(seeds))
    found: Sequence[Score | None] = [None] * len(pictures)
    if clip is not None:
        places = [(p, c) for p in prompts for _ in seeds for c in range(len(columns))]
        asked = [p.replace("{subject}", columns[c].class_noun or columns[c].subject) for p, c in places]
        moved = _drifts(clip, plain, drawn)
        found = [
            dataclasses.replace(score, drift=moved.get(place))
            for score, place in zip(scores(clip, pictures, asked, photos, places), places, strict=True)
        ]
    cells = tuple(Sample(*cell) for cell in zip(labels, requests, pictures, found, strict=True))
    notes = tuple(prompt_notes(pipe, requests))
    return Comparison(tuple(columns), tuple(prompts), tuple(seeds), cells, full, seconds, tuple(photos), notes)


Place = tuple[str, int]
"""A prompt, and the number of a column."""


def drift_pairs(
    columns: Sequence[Variant], prompts: Sequence[str], seed: int, negative_prompt: str = ""
) -> dict[Place, tuple[Request, Request]]:
    """For each prompt and adapter the class noun alone, drawn with the adapter and by the base from the same noise.

    A column without adapters drifts nowhere, and one without a class noun has nothing to compare.
    """
    return {
        (prompt, number): (
            Request(plain, seed, tuple(column.adapters.items()), negative_prompt),
            Request(plain, seed, (), negative_prompt),
        )
        for number, column in enumerate(columns)
        if column.adapters and column.class_noun
        for prompt in prompts
        for plain in [prompt.replace("{subject}", column.class_noun)]
    }


def _drifts(
    clip: Clip, pairs: Mapping[Place, tuple[Request, Request]], drawn: Mapping[Request, Image.Image]
) -> dict[Place, float]:
    if not pairs:
        return {}
    own, originals = ([drawn[request] for request in side] for side in zip(*pairs.values(), strict=True))
    return dict(zip(pairs, clip_distance(clip, own, originals), strict=True))


def save_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write ``grid.png``, ``pictures/…png``, small ``photos/…png`` and ``results.json`` into ``folder``.

    Returns the grid's path.
    """
    save_photos(comparison.photos, folder / "photos")
    entries = []
    for number, cell in enumerate(comparison.cells):
        name = f"{number:03d}-{slug(cell.request.prompt)}-seed{cell.request.seed}-{slug(cell.column)}.png"
        save_png(cell.image, folder / "pictures" / name)
        entry = {"column": cell.column, "picture": f"pictures/{name}", **cell.image.info[PNG_KEY]}
        entries.append(entry | ({"score": dataclasses.asdict(cell.score)} if cell.score else {}))
    for entry, drift in zip(entries, drift_from_base(comparison), strict=True):
        entry["difference_from_base"] = drift
    grid = save_png(draw_grid(comparison), folder / "grid.png")
    write_text(
        folder / "results.json", json.dumps(_summary(comparison) | {"cells": entries}, indent=1, ensure_ascii=False)
    )
    return grid


def save_photos(photos: Sequence[Image.Image], folder: Path) -> None:
    """Write small copies of reference photos, ``00.png`` and on."""
    for number, photo in enumerate(photos):
        small = photo.copy()
        small.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
        save_png(small, folder / f"{number:02d}.png")


def load_comparison(folder: Path) -> Comparison:
    """A comparison that ``save`` wrote, its photos as small as they were kept. Raises UserError if there is none."""
    try:
        facts = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        cells = tuple(_load_cell(folder, entry) for entry in facts["cells"])
        first, names = facts["cells"][0], [field.name for field in dataclasses.fields(FullSettings)]
        full = FullSettings(**{name: first[name] for name in names if name in first or name not in SIZE_CONDITIONING})
        columns = tuple(Variant(**column) for column in facts["columns"])
        prompts, seeds, seconds = tuple(facts["prompts"]), tuple(facts["seeds"]), facts["seconds"]
        notes = tuple(facts.get("notes", ()))
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{folder} holds no whole comparison ({error}); make it again") from None
    photos = tuple(photo for file in sorted((folder / "photos").glob("*.png")) if (photo := read_image(file)))
    return Comparison(columns, prompts, seeds, cells, full, seconds, photos, notes)


def _load_cell(folder: Path, entry: dict[str, Any]) -> Sample:
    mix = tuple(entry["adapters"].items())
    request = Request(entry["prompt"], entry["seed"], mix, entry["negative_prompt"])
    score = Score(**entry["score"]) if "score" in entry else None
    if (image := read_image(folder / entry["picture"])) is None:
        raise ValueError(f"{entry['picture']} can't be read")
    return Sample(entry["column"], request, image, score)


FIGURES = {
    "subject": "likeness to the photos",
    "prompt": "likeness to the prompt's words",
    "nearest": "likeness to the nearest photo: close to 1 it is a copy",
    "variety": "unlikeness of pictures that differ in their noise alone",
    "drift": "what the adapter does to its class without the trigger: less is better",
}
"""What is measured by a CLIP model, and what it means."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over a column's cells; 0 for a single one."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.deviation:.2f}"


def spread(comparison: Comparison, column: int) -> dict[str, Spread]:
    """A column's figures (see FIGURES) over all its cells; none that was not measured."""
    found = [cell.score for cell in comparison.cells[column :: len(comparison.columns)] if cell.score]
    figures = {name: [v for score in found if (v := getattr(score, name)) is not None] for name in FIGURES}
    return {
        name: Spread(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        for name, values in figures.items()
        if values
    }


def clear_best(comparison: Comparison, figure: str) -> int | None:
    """The adapter's column whose ``figure`` ("subject", "prompt") is clearly the highest, or None.

    Clearly: against every other adapter the mean of the differences between pictures of the same noise is over twice
    its standard error, with four pairs at least.
    """
    width = len(comparison.columns)
    rivals = [number for number, column in enumerate(comparison.columns) if column.adapters]
    found = {n: [getattr(cell.score, figure, None) for cell in comparison.cells[n::width]] for n in rivals}
    values = {n: [value for value in own if value is not None] for n, own in found.items()}
    if len(rivals) < 2 or any(len(values[n]) < max(4, len(found[n])) for n in rivals):
        return None
    best = max(rivals, key=lambda number: statistics.mean(values[number]))
    for other in set(rivals) - {best}:
        gains = [a - b for a, b in zip(values[best], values[other], strict=True)]
        if statistics.mean(gains) <= 2 * statistics.stdev(gains) / len(gains) ** 0.5:
            return None
    return best


def drift_from_base(comparison: Comparison) -> list[float | None]:
    """RMS pixel difference (0 to 1) of each cell from the base's picture of the same noise; None without a base.

    A proxy: it says how much changed, not whether it changed for the better.
    """
    base = next((i for i, column in enumerate(comparison.columns) if not column.adapters), None)
    if base is None:
        return [None] * len(comparison.cells)
    arrays = [np.asarray(cell.image, dtype=np.float64) / 255 for cell in comparison.cells]
    width = len(comparison.columns)
    return [round(float(np.sqrt(np.mean((a - arrays[i - i % width + base]) ** 2))), 4) for i, a in enumerate(arrays)]


def draw_grid(comparison: Comparison) -> Image.Image:
    """One labelled picture: a row a prompt and seed; reference photos first, then a column a contestant."""
    side = max(*comparison.cells[0].image.size, 128)
    size = max(13, side // 11)
    font, line = ImageFont.load_default(size=size), int(size * 1.35)
    references = 2 if comparison.photos else 0
    widths = [side] * (len(comparison.columns) + references)
    left = MARGIN + references * GAP
    rows = [(p, s) for p in range(len(comparison.prompts)) for s in range(len(comparison.seeds))]
    small = ImageFont.load_default(size=max(11, side // 13))
    under = line if any(cell.score for cell in comparison.cells) else 0
    height = 2 * MARGIN + line + len(rows) * (side + under + GAP) + len(comparison.prompts) * line
    sheet = Image.new("RGB", (left + sum(widths) + GAP * len(widths) + MARGIN, height), "white")
    pen = ImageDraw.Draw(sheet)
    places = [left + i * (side + GAP) for i in range(len(widths))]
    if references:
        pen.text((places[0], MARGIN), "photos", "#555", font)
    for place, column in zip(places[references:], comparison.columns, strict=True):
        pen.text((place, MARGIN), _fit(column.label, font, side), "black", font)
    y = MARGIN + line
    for number, (prompt, seed) in enumerate(rows):
        if seed == 0:
            title = comparison.prompts[prompt].replace("{subject}", comparison.columns[0].subject)
            pen.text((MARGIN, y), _fit(title, font, sheet.width - 2 * MARGIN), "#1f4e9e", font)
            y += line
        shown = [comparison.photos[(2 * number + i) % len(comparison.photos)] for i in range(references)]
        for place, image in zip(places, [*shown, *(c.image for c in comparison.row(prompt, seed))], strict=True):
            sheet.paste(ImageOps.pad(image.convert("RGB"), (side, side), color="white"), (place, y))
        for place, cell in zip(places[references:], comparison.row(prompt, seed), strict=True):
            if cell.score:
                pen.text((place, y + side + 2), _fit(score_summary(cell.score), small, side), "#555", small)
        y += side + under + GAP
    return sheet


def score_summary(score: Score) -> str:
    """A score for reading: "subject .71 · prompt .32"."""
    figures = [("subject", score.subject), ("prompt", score.prompt)]
    return " · ".join(f"{name} {value:.2f}".replace("0.", ".") for name, value in figures if value is not None)


def _fit(text: str, font: Any, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _summary(comparison: Comparison) -> dict[str, Any]:
    return {
        "columns": [dataclasses.asdict(c) for c in comparison.columns],
        "scores": {
            column.label: {name: dataclasses.asdict(value) for name, value in spread(comparison, number).items()}
            for number, column in enumerate(comparison.columns)
        },
        "prompts": comparison.prompts,
        "seeds": comparison.seeds,
        "notes": comparison.notes,
        "grid": "grid.png",
        "seconds": round(comparison.seconds, 2),
    }
