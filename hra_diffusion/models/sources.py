"""Find and classify base models by name, file, folder or hub id, without loading them."""

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

DENOISER_CONFIGS = tuple(dict.fromkeys(f"{family.denoiser}/config.json" for family in families.FAMILIES))
VERSION_NAMES = {"flux.2": "flux2", "diffusion-3": "sd3", "xl": "sdxl", "diffusion-2": "sd2"}
"""Versions of hub ids by a part of their name."""


def base_name(source: str) -> str:
    """Return the name that files record for a base model: the file's or folder's own name, or the hub id."""
    return Path(source).resolve().name if Path(source).exists() and source != TOYBOX else source


def local_path(source: str) -> Path:
    """Return the path of a base model on disk, which does not exist for a hub id."""
    return ASSETS / TOYBOX if source == TOYBOX else Path(source)


def model_folder(source: str, revision: str | None = None) -> Path | None:
    """Return the folder of a base model, given by path or in the local hub cache; None if there is none."""
    path = local_path(source)
    return path if path.is_dir() else _cached_folder(source, revision)


def base_version(source: str) -> str:
    """Return "toybox", "sd1", "sd2", "sdxl", "sd3" or "flux2" for a base model, from its configuration alone.

    A hub id outside the local cache is classified by its name. Unreadable models count as "sd1"; loading them raises an
    error with the reason.
    """
    if source == TOYBOX:
        return TOYBOX
    try:
        if Path(source).is_file():
            from hra_diffusion.models import single_file  # imports diffusers, which takes seconds

            return families.version(single_file.detect_architecture(Path(source), "epsilon").denoiser)
        if folder := model_folder(source):
            config = next(file for name in DENOISER_CONFIGS if (file := folder / name).is_file())
            return families.version(json.loads(config.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, StopIteration, SafetensorError):
        return "sd1"
    name = source.lower()
    return next((version for part, version in VERSION_NAMES.items() if part in name), "sd1")


def _cached_folder(source: str, revision: str | None) -> Path | None:
    try:
        cached = [try_to_load_from_cache(source, name, revision=revision) for name in DENOISER_CONFIGS]
    except ValueError:  # not a hub id
        return None
    return next((Path(config).parent.parent for config in cached if isinstance(config, str)), None)
