"""The identity of a run: the configuration and photos that it trains with, stored in each of its checkpoints.

A resumed run is compared with it, so that an edited ``config.yaml`` or ``photos.json`` does not silently change the
weights, and damaged ones are replaced by it. Checkpoints of earlier versions have none.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from training import config as configs
from training.config import EXECUTION_FIELDS, TrainConfig
from training.data.photo import Box, Photo

KEY = "run"
"""Key of the identity in the metadata of ``training.safetensors``."""
FREE_FIELDS = (
    *EXECUTION_FIELDS, "name", "preset", "memory_limit", "sample_batch_size", "checkpoint_every", "sample_every",
    "sample_prompts",
)  # fmt: skip
"""Fields that do not decide the weights (a preset and a limit only fill in others). They may change on a resume."""


@dataclass(frozen=True)
class PhotoRecord:
    """What identifies a photo of a run.

    Attributes:
        sha256: SHA-256 of the file in hexadecimal.
        crop, frame, caption: as in ``Photo``. Earlier versions stored no frame.
        mask: SHA-256 of the pixels of the cropped mask, or None without one.
    """

    sha256: str
    crop: Box
    caption: str | None
    frame: Box | None = None
    mask: str | None = None

    @classmethod
    def of(cls, photo: Photo) -> "PhotoRecord":
        mask = pixel_hash(photo.mask) if photo.mask else None
        return cls(photo.sha256, photo.crop, photo.caption, photo.frame, mask)


def pixel_hash(image: Image.Image) -> str:
    """Return the SHA-256 of an image's pixels in hexadecimal."""
    return hashlib.sha256(image.tobytes()).hexdigest()


@dataclass(frozen=True)
class Identity:
    """The configuration and the photos of a run."""

    config: TrainConfig
    photos: list[PhotoRecord]


class _Stored(BaseModel):
    config: dict[str, Any]
    photos: list[PhotoRecord]


def metadata(identity: Identity) -> dict[str, str]:
    """Return an identity as metadata of a checkpoint."""
    stored = _Stored(config=identity.config.model_dump(mode="json"), photos=identity.photos)
    return {KEY: stored.model_dump_json()}


def read(checkpoint: Path) -> Identity | None:
    """Return the identity in a checkpoint's folder, or None if it has none or can't be read."""
    try:
        with safe_open(checkpoint / "training.safetensors", "pt") as file:
            stored = _Stored.model_validate_json((file.metadata() or {}).get(KEY, ""))
        return Identity(configs.parse_run(stored.config), stored.photos)
    except (OSError, SafetensorError, ValueError):
        return None


def differences(before: TrainConfig, now: Mapping[str, Any], with_photos: bool) -> list[str]:
    """Return the values that decide the weights and differ, such as "steps 400, not 500".

    ``now`` holds plain values. ``with_photos``: compare the paths of the photos too.
    """
    excluded = {*FREE_FIELDS, *(() if with_photos else ("photos", "boxes"))}
    old = dict(_flat(before.model_dump(mode="json", exclude=excluded)))
    new = dict(_flat({name: value for name, value in now.items() if name not in excluded}))
    return [
        f"{name} {_short(old.get(name))}, not {_short(new[name])}" for name in new if new[name] != old.get(name)
    ] + [f"{name} {_short(old[name])}, not given" for name in old if name not in new and "." in name]


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            yield name, value


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
