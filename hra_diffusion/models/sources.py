"""Base models by name, file, folder or hub id, without loading them."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError

TOYBOX = "toybox"
PACKAGE = Path(__file__).resolve().parents[1]
ASSETS = PACKAGE / "assets" if (PACKAGE / "assets").is_dir() else PACKAGE.parent / "assets"
"""Folder of the embedded models: inside the installed package, or at the root of a checkout."""


def base_name(source: str) -> str:
    """How files name this base: a folder's or file's own name (never its path), or the hub id."""
    return Path(source).resolve().name if Path(source).exists() and source != TOYBOX else source


def base_version(source: str) -> str:
    """What a base is, without loading it: "toybox", "sd1", "sd2" or "sdxl"; for a hub id that is not in the local cache
    by its name, and "sd1" where nothing tells."""
    if source == TOYBOX:
        return TOYBOX
    try:
        if Path(source).is_file():
            from hra_diffusion.models import single_file
            from hra_diffusion.models.families.architectures import SD1, SD2, SD2_BASE, SDXL

            return {SD1: "sd1", SD2: "sd2", SD2_BASE: "sd2", SDXL: "sdxl"}[
                single_file.recognise(Path(source), "epsilon")
            ]
        folder = Path(source) if Path(source).is_dir() else cached_folder(source)
        if folder is not None:
            unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
            text = {"text_time": "sdxl"}.get(unet.get("addition_embed_type"))
            return text or ("sd2" if unet.get("cross_attention_dim") == 1024 else "sd1")
    except (OSError, ValueError, AttributeError, SafetensorError):  # told when it is loaded
        return "sd1"
    name = source.lower()
    return "sdxl" if "xl" in name else "sd2" if "diffusion-2" in name else "sd1"


def cached_folder(source: str) -> Path | None:
    """The folder of a hub model in the local cache, if its configuration is there."""
    try:
        found = try_to_load_from_cache(source, "unet/config.json")
    except ValueError:  # no hub id
        return None
    return Path(found).parent.parent if isinstance(found, str) else None
