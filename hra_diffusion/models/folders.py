"""Checks of a diffusers model folder before it is loaded."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

from hra_diffusion.adapters.adapter_file import IMPORT_COMMAND, find_weights
from hra_diffusion.errors import BaseModelError, Note
from hra_diffusion.models.families import COMPONENTS

INDEX = "model_index.json"
COMPONENTS_WITH_WEIGHTS = (*COMPONENTS, "vae")


def check_index(path: Path) -> None:
    """Raise BaseModelError for a folder without a valid ``model_index.json``."""
    index = path / INDEX
    if not index.is_file():
        if find_weights(path):
            raise BaseModelError(f"{path} is an adapter, not a base model: import it with {IMPORT_COMMAND}")
        raise BaseModelError(f"{path} contains no {INDEX}: not a diffusers model folder")
    try:
        json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError):
        raise BaseModelError(f"{index} is damaged: not a JSON object; copy the model again") from None


def check_weights(path: Path, source: str) -> None:
    """Raise BaseModelError if shards are missing, or if a component has pickled weights only."""
    for shards in path.glob("*/*.safetensors.index*.json"):
        try:
            names = set(json.loads(shards.read_text(encoding="utf-8"))["weight_map"].values())
            missing = sorted(name for name in names if not (shards.parent / name).is_file())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BaseModelError(f"{shards} is damaged; copy the model again") from None
        if 0 < len(missing) < len(names):  # if all are missing, that variant was not copied
            raise BaseModelError(f"{shards.parent / missing[0]} is missing; copy the model again, all its shards")
    parts = [part for part in COMPONENTS_WITH_WEIGHTS if not any((path / part).glob("*.safetensors"))]
    if pickled := ", ".join(part for part in parts if any((path / part).glob("*.bin"))):
        raise BaseModelError(
            f"{source} contains {pickled} as pickles (.bin), which can run code and are not opened: get the same model "
            "as .safetensors, or convert it (docs/bases.md says how)"
        )


def variant_of(file: str) -> str:
    """Return the variant of a weights file by its name, "" for the default variant.

    Names follow diffusers and transformers: "model.fp16-00001-of-00002.safetensors" has variant "fp16".
    """
    return re.sub(r"-\d+-of-\d+$", "", file.removesuffix(".safetensors")).partition(".")[2]


def required_variant(folder: Path, source: str) -> str | None:
    """Return the variant to load ("fp16") if a component lacks default weights, with a warning (Note); else None."""
    variants: dict[str, set[str]] = {}
    for part in COMPONENTS_WITH_WEIGHTS:
        names = {variant_of(file.name) for file in (folder / part).glob("*.safetensors")}
        if names and "" not in names:
            variants[part] = names
    if not variants:
        return None
    variant = max(set.union(*variants.values()), key=lambda name: sum(name in names for names in variants.values()))
    warnings.warn(
        f"{source} contains weights of variant {variant} only, for {', '.join(variants)}; loading that variant",
        Note,
        stacklevel=4,
    )
    return variant
