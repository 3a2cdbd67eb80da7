"""Base models by name, file, folder or hub id, without loading them."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError

from hra_diffusion.models import families

TOYBOX = "toybox"
PACKAGE = Path(__file__).resolve().parents[1]
ASSETS = PACKAGE / "assets" if (PACKAGE / "assets").is_dir() else PACKAGE.parent / "assets"
"""Folder of the embedded models: inside the installed package, or at the root of a checkout."""


def base_name(source: str) -> str:
    """Return the name that files record for a base model: the file's or folder's own name, or the hub id."""
    return Path(source).resolve().name if Path(source).exists() and source != TOYBOX else source


def base_version(source: str) -> str:
    """Return "toybox", "sd1", "sd2" or "sdxl" for a base model, from its configuration alone.

    A hub id outside the local cache is classified by its name. Defaults to "sd1" for anything unreadable, which fails
    with an explanation when it is loaded.
    """
    if source == TOYBOX:
        return TOYBOX
    try:
        if Path(source).is_file():
            from hra_diffusion.models import single_file  # imports diffusers, which takes seconds

            return families.version(single_file.detect_architecture(Path(source), "epsilon").unet)
        if folder := Path(source) if Path(source).is_dir() else cached_folder(source):
            return families.version(json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, SafetensorError):
        return "sd1"
    name = source.lower()
    return "sdxl" if "xl" in name else "sd2" if "diffusion-2" in name else "sd1"


def cached_folder(source: str) -> Path | None:
    """Return the folder of a hub model in the local cache, or None if it is not cached."""
    try:
        found = try_to_load_from_cache(source, "unet/config.json")
    except ValueError:  # not a hub id
        return None
    return Path(found).parent.parent if isinstance(found, str) else None
