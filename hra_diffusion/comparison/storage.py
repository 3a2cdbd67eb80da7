"""Comparisons in folders: images, reference photos, the grid, and ``results.json``."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hra_diffusion.comparison.compare import Comparison, Sample, Variant
from hra_diffusion.comparison.grid import draw_grid
from hra_diffusion.comparison.statistics import difference_from_base, score_statistics
from hra_diffusion.errors import UserError
from hra_diffusion.evaluation.clip import Score
from hra_diffusion.files import write_text
from hra_diffusion.generation.png import PNG_KEY, read_image, save_png, slug
from hra_diffusion.generation.requests import SIZE_CONDITIONING, FullSettings, Request

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
    try:
        results = _rename_old_keys(json.loads((folder / "results.json").read_text(encoding="utf-8")))
        entries = [_rename_old_keys(entry) for entry in results["samples"]]
        samples = tuple(_load_sample(folder, entry) for entry in entries)
        names = [field.name for field in dataclasses.fields(FullSettings)]
        full = FullSettings(
            **{name: entries[0][name] for name in names if name in entries[0] or name not in SIZE_CONDITIONING}
        )
        variants = tuple(Variant(**variant) for variant in results["variants"])
        prompts, seeds, seconds = tuple(results["prompts"]), tuple(results["seeds"]), results["seconds"]
        notes = tuple(results.get("notes", ()))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} holds no whole comparison ({error}); make it again") from None
    photos = tuple(photo for file in sorted((folder / "photos").glob("*.png")) if (photo := read_image(file)))
    return Comparison(variants, prompts, seeds, samples, full, seconds, photos, notes)


def _rename_old_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    return {OLD_KEYS.get(name, name): value for name, value in values.items()}


def _load_sample(folder: Path, entry: Mapping[str, Any]) -> Sample:
    adapters = tuple(entry["adapters"].items())
    request = Request(entry["prompt"], entry["seed"], adapters, entry["negative_prompt"])
    score = Score(**entry["score"]) if "score" in entry else None
    if (image := read_image(folder / entry["image"])) is None:
        raise ValueError(f"{entry['image']} can't be read")
    return Sample(entry["variant"], request, image, score)


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
