"""The score of a base model: its figures as JSON and as a table with targets."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hra_diffusion.files import write_text


@dataclass(frozen=True)
class Share:
    """Share of correct images: mean, minimum and maximum over the seeds, and the share of renders (the ceiling)."""

    mean: float
    least: float
    most: float
    ceiling: float


@dataclass(frozen=True)
class Score:
    """Measurements of a base model. Field names are the keys of score.json.

    ``objects``, ``scenes``, ``attributes``: accuracy; ``objects_with_attribute``: accuracy for objects if the prompt
    also names an attribute. ``seconds``: per image. ``psnr``, ``photo_psnr``: PSNR of the autoencoder in dB on renders
    of held-out objects and on photos.
    """

    objects: Share
    scenes: Share
    attributes: Share
    objects_with_attribute: Share
    seconds: float
    psnr: float
    photo_psnr: float | None
    guidance_scale: float
    steps: int
    seeds: int
    unet: str = ""
    """Digest of the UNet that was scored."""


TARGETS = {"objects": 0.8, "scenes": 0.95, "attributes": 0.7, "psnr": 28.0, "seconds": 2.0}
"""Targets by field of Score: minimum accuracy and PSNR, maximum seconds."""

SHARES = {
    "Object": "objects", "Scene": "scenes", "Attribute": "attributes",
    "Object, with an attribute": "objects_with_attribute",
}  # fmt: skip
"""Fields of Score that are shares, by their title in the table."""

OLD_KEYS = {
    "things": "objects", "looks": "attributes", "dressed": "objects_with_attribute", "decibels": "psnr",
    "photo_decibels": "photo_psnr",
}  # fmt: skip
"""Keys of score.json before they were renamed."""


def save_score(score: Score, path: Path) -> None:
    """Write a score as JSON atomically."""
    write_text(path, json.dumps(asdict(score), indent=2) + "\n")


def load_score(path: Path) -> Score:
    """Read a score written by ``save_score``. Raises FileNotFoundError if there is none."""
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    fields = {OLD_KEYS.get(key, key): value for key, value in stored.items()}
    shares: dict[str, Any] = {name: Share(**fields[name]) for name in SHARES.values()}
    return Score(**fields | shares)


def score_table(score: Score) -> str:
    """Format a score as a Markdown table with its targets."""
    rows = [("correct", "share", "over seeds", "renders", "target")]
    for title, field in SHARES.items():
        share: Share = getattr(score, field)
        spread = f"{share.least:.1%}–{share.most:.1%}"
        rows.append((title, f"{share.mean:.1%}", spread, f"{share.ceiling:.1%}", _target(field, "≥ {:.0%}")))
    rows.append(("Autoencoder, held-out objects", f"{score.psnr:.1f} dB", "", "", _target("psnr", "≥ {:.1f} dB")))
    if score.photo_psnr is not None:
        rows.append(("Autoencoder, photos", f"{score.photo_psnr:.1f} dB", "", "", ""))
    seconds = _target("seconds", "≤ {:.2f} s")
    rows.append((f"Time per image, {score.steps} steps", f"{score.seconds:.2f} s", "", "", seconds))
    header, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([header, "|---|---|---|---|---|", *body])


def _target(field: str, wording: str) -> str:
    return wording.format(TARGETS[field]) if field in TARGETS else ""
