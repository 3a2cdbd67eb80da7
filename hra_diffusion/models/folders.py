"""Checks of a diffusers model folder before it is loaded."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

from hra_diffusion.adapters import adapter_file
from hra_diffusion.errors import BaseModelError, Note

MODELS = ("unet", "text_encoder", "text_encoder_2", "vae")
"""The components of a pipeline that have weights."""


def check_index(path: Path) -> None:
    """Raise BaseModelError for a folder without a readable ``model_index.json``."""
    index = path / "model_index.json"
    if not index.is_file():
        if adapter_file.find_weights(path):
            raise BaseModelError(f"{path} is an adapter, not a base: bring it in with {adapter_file.IMPORT_COMMAND}")
        raise BaseModelError(f"{path} holds no model_index.json: not a diffusers model folder")
    try:
        json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError):
        raise BaseModelError(f"{index} is damaged: not a JSON object; copy the model again") from None


def check_weights(path: Path, source: str) -> None:
    """Raises BaseModelError for a model folder without all its shards, or with pickled weights only."""
    for shards in path.glob("*/*.safetensors.index*.json"):
        try:
            names = set(json.loads(shards.read_text(encoding="utf-8"))["weight_map"].values())
            missing = sorted(name for name in names if not (shards.parent / name).is_file())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BaseModelError(f"{shards} is damaged; copy the model again") from None
        if 0 < len(missing) < len(names):  # without all of them it is a variant that was not copied
            raise BaseModelError(f"{shards.parent / missing[0]} is missing; copy the model again, all its shards")
    parts = [part for part in MODELS if not any((path / part).glob("*.safetensors"))]
    if pickled := ", ".join(part for part in parts if any((path / part).glob("*.bin"))):
        raise BaseModelError(
            f"{source} holds {pickled} as pickles (.bin), which can run code and are not opened: get the same model as "
            ".safetensors, or convert it (docs/bases.md says how)"
        )


def variant_of(file: str) -> str:
    """Return the variant of a weights file, "" for plain weights.

    The name is one of diffusers' or transformers': "model.fp16-00001-of-00002.safetensors" belongs to "fp16".
    """
    return re.sub(r"-\d+-of-\d+$", "", file.removesuffix(".safetensors")).partition(".")[2]


def only_variant(folder: Path, source: str) -> str | None:
    """The variant ("fp16") to load if a part of the model has no plain weights, with a warning; else None."""
    found: dict[str, set[str]] = {}
    for part in MODELS:
        variants = {variant_of(file.name) for file in (folder / part).glob("*.safetensors")}
        if variants and "" not in variants:
            found[part] = variants
    if not found:
        return None
    variant = max(set.union(*found.values()), key=lambda name: sum(name in own for own in found.values()))
    warnings.warn(
        f"{source} holds its weights as variant {variant} only: {', '.join(found)}; loading that variant",
        Note,
        stacklevel=4,
    )
    return variant
