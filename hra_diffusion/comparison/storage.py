"""Comparisons in folders: images, reference photos, the grid, and ``results.json``."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from PIL import Image
from pydantic import BaseModel, Field, model_validator

from hra_diffusion import records
from hra_diffusion.adapters.state import Fusion
from hra_diffusion.comparison.compare import Comparison, Sample, Variant
from hra_diffusion.comparison.grid import draw_grid
from hra_diffusion.comparison.statistics import difference_from_base, score_statistics
from hra_diffusion.errors import UserError
from hra_diffusion.evaluation.clip import Score
from hra_diffusion.files import write_text
from hra_diffusion.generation.png import PNG_KEY, read_image, save_png, slug
from hra_diffusion.generation.requests import FullSettings, Request

PHOTO_SIDE = 512
"""Largest side of stored reference photos, in pixels."""
OLD_KEYS = {"columns": "variants", "cells": "samples", "column": "variant", "picture": "image"}
"""Keys of ``results.json`` in version 0.1, and their present names."""


def save_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write ``grid.png``, ``pictures/*.png``, small ``photos/*.png`` and ``results.json``; return the grid's path."""
    save_photos(comparison.photos, folder / "photos")
    entries = []
    for number, sample in enumerate(comparison.samples):
        name = f"{number:03d}-{slug(sample.request.prompt)}-seed{sample.request.seed}-{slug(sample.variant)}.png"
        save_png(sample.image, folder / "pictures" / name)
        entry = {"variant": sample.variant, "image": f"pictures/{name}", **sample.image.info[PNG_KEY]}
        entries.append(entry | ({"score": dataclasses.asdict(sample.score)} if sample.score else {}))
    for entry, difference in zip(entries, difference_from_base(comparison), strict=True):
        entry["difference_from_base"] = difference
    grid = save_png(draw_grid(comparison), folder / "grid.png")
    results = _summary(comparison) | {"samples": entries}
    write_text(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False))
    return grid


def save_photos(photos: Sequence[Image.Image], folder: Path) -> None:
    """Write small copies of reference photos as ``00.png``, ``01.png``, …"""
    for number, photo in enumerate(photos):
        small = photo.copy()
        small.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
        save_png(small, folder / f"{number:02d}.png")


def load_comparison(folder: Path) -> Comparison:
    """Load a comparison written by ``save_comparison``, with its small photos. Raises UserError if it is incomplete."""
    results = records.read(folder / "results.json", _Results, None)
    if results is None:
        raise UserError(f"{folder} holds no whole comparison (results.json is missing or damaged); make it again")
    samples = tuple(_load_sample(folder, stored) for stored in results.samples)
    photos = tuple(photo for file in sorted((folder / "photos").glob("[!.]*.png")) if (photo := read_image(file)))
    return Comparison(
        results.variants, results.prompts, results.seeds, samples, results.samples[0].settings, results.seconds, photos,
        results.notes,
    )  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """What a saved comparison compares: the labels of its variants, its prompts and its number of images."""

    labels: tuple[str, ...]
    prompts: tuple[str, ...]
    images: int


def read_summary(folder: Path) -> Summary | None:
    """Return the summary of a saved comparison without reading its images, or None if ``results.json`` is damaged."""
    results = records.read(folder / "results.json", _Results, None)
    if results is None:
        return None
    return Summary(tuple(variant.label for variant in results.variants), results.prompts, len(results.samples))


class _Stored(BaseModel):
    """Part of ``results.json``, with the present names of its keys."""

    @model_validator(mode="before")
    @classmethod
    def _rename_old_keys(cls, values: Any) -> Any:
        return (
            {OLD_KEYS.get(name, name): value for name, value in values.items()} if isinstance(values, dict) else values
        )


class _StoredSample(_Stored):
    variant: str
    image: str
    prompt: str
    seed: int = Field(ge=0, lt=2**63)
    adapters: dict[str, float]
    fusion: Fusion = "compose"
    negative_prompt: str
    settings: FullSettings
    score: Score | None = None

    @model_validator(mode="before")
    @classmethod
    def _nest_settings(cls, values: Any) -> Any:
        return {**values, "settings": values} if isinstance(values, dict) else values


class _Results(_Stored):
    variants: tuple[Variant, ...] = Field(min_length=1)
    samples: tuple[_StoredSample, ...] = Field(min_length=1)
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_count(self) -> Self:
        if len(self.samples) != (count := len(self.prompts) * len(self.seeds) * len(self.variants)):
            raise ValueError(f"{len(self.samples)} samples in place of {count}")
        return self


def _load_sample(folder: Path, stored: _StoredSample) -> Sample:
    request = Request(stored.prompt, stored.seed, tuple(stored.adapters.items()), stored.negative_prompt, stored.fusion)
    if (image := read_image(folder / stored.image)) is None:
        raise UserError(f"{folder} holds no whole comparison ({stored.image} can't be read); make it again")
    return Sample(stored.variant, request, image, stored.score)


def _summary(comparison: Comparison) -> dict[str, Any]:
    return {
        "variants": [dataclasses.asdict(variant) for variant in comparison.variants],
        "scores": {
            variant.label: {
                name: dataclasses.asdict(statistic) for name, statistic in score_statistics(comparison, index).items()
            }
            for index, variant in enumerate(comparison.variants)
        },
        "prompts": comparison.prompts,
        "seeds": comparison.seeds,
        "notes": comparison.notes,
        "grid": "grid.png",
        "seconds": round(comparison.seconds, 2),
    }
