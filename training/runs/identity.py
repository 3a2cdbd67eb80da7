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

TRAINING_STATE = "training.safetensors"
"""File of the training state in a checkpoint's folder."""
KEY = "run"
"""Key of the identity in the metadata of the training state."""
FREE_FIELDS = (
    *EXECUTION_FIELDS, "name", "preset", "memory_limit", "sample_batch_size", "checkpoint_every", "keep_states",
    "auto_resume", "sample_every", "sample_prompts", "validation_every", "early_stop", "report_to",
)  # fmt: skip
"""Fields that do not decide the weights (a preset and a limit only fill in others). They may change on a resume."""


@dataclass(frozen=True)
class PhotoRecord:
    """What identifies a photo of a run.

    Attributes:
        sha256: SHA-256 of the file in hexadecimal.
        crop, frame, caption, concept: as in ``Photo``. Earlier versions stored no frame.
        mask: SHA-256 of the pixels of the cropped mask, or None without one.
    """

    sha256: str
    crop: Box
    caption: str | None
    frame: Box | None = None
    concept: int = 0
    mask: str | None = None

    @classmethod
    def of(cls, photo: Photo) -> "PhotoRecord":
        mask = pixel_hash(photo.mask) if photo.mask else None
        return cls(photo.sha256, photo.crop, photo.caption, photo.frame, photo.concept, mask)


def pixel_hash(image: Image.Image) -> str:
    """Return the SHA-256 of an image's pixels in hexadecimal."""
    return hashlib.sha256(image.tobytes()).hexdigest()


@dataclass(frozen=True)
class Identity:
    """The configuration and the photos of a run, and the hash of the adapter file that it started from ("" for none).

    The hash is a SHA-256 in hexadecimal.
    """

    config: TrainConfig
    photos: list[PhotoRecord]
    init_sha256: str = ""


class _Stored(BaseModel):
    config: dict[str, Any]
    photos: list[PhotoRecord]
    init_sha256: str = ""


def metadata(identity: Identity) -> dict[str, str]:
    """Return an identity as metadata of a checkpoint."""
    config = identity.config.model_dump(mode="json")
    stored = _Stored(config=config, photos=identity.photos, init_sha256=identity.init_sha256)
    return {KEY: stored.model_dump_json()}


def read(checkpoint: Path) -> Identity | None:
    """Return the identity in a checkpoint's folder, or None if it has none or can't be read."""
    try:
        with safe_open(checkpoint / TRAINING_STATE, "pt") as file:
            stored = _Stored.model_validate_json((file.metadata() or {}).get(KEY, ""))
        return Identity(configs.parse_run(stored.config), stored.photos, stored.init_sha256)
    except (OSError, SafetensorError, ValueError):
        return None


def differences(before: TrainConfig, now: Mapping[str, Any], with_photos: bool) -> list[str]:
    """Return the values that decide the weights and differ, such as "steps 400, not 500".

    ``now`` holds plain values. ``with_photos``: compare the paths of the photos too.
    """
    excluded = {*FREE_FIELDS, *(() if with_photos else ("photos", "boxes"))}
    old, new = (
        dict(_flat({name: value for name, value in values.items() if name not in excluded}))
        for values in (_comparable(before.model_dump(mode="json"), with_photos), _comparable(now, with_photos))
    )
    return [
        f"{name} {_short(old.get(name))}, not {_short(new[name])}" for name in new if new[name] != old.get(name)
    ] + [f"{name} {_short(old[name])}, not given" for name in old if name not in new and "." in name]


def _comparable(values: Mapping[str, Any], with_photos: bool) -> dict[str, Any]:
    """Return the values, without the paths of the concepts' photos unless ``with_photos``."""
    concepts = values.get("concepts", [])
    if not with_photos:
        concepts = [{**concept, "photos": None} if isinstance(concept, dict) else concept for concept in concepts]
    return {**values, "concepts": concepts}


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            yield name, value


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
