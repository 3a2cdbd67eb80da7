"""Image files, with the generation settings stored in PNG metadata."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

from PIL import Image, PngImagePlugin
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from hra_diffusion.adapters.registry import explain
from hra_diffusion.adapters.state import Fusion
from hra_diffusion.errors import UserError
from hra_diffusion.files import atomic_path
from hra_diffusion.generation.requests import FullSettings, Request, prompt_notes
from hra_diffusion.pipeline import base_name_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PNG_KEY = "hra_diffusion"
"""Key of the settings in ``image.info`` and in PNG metadata."""


_Text = Annotated[str, Field(max_length=20_000)]
_Side = Annotated[int, Field(ge=1, le=2**16)]
_Pair = Annotated[list[Annotated[int, Field(ge=0, le=2**16)]], Field(min_length=2, max_length=2)]


class PngAxis(BaseModel):
    """An axis of an X/Y grid, as it is stored in a PNG (see ``comparison.axes``)."""

    axis: _Text
    values: Annotated[list[_Text | int | FiniteFloat], Field(max_length=200)]


class PngSettings(BaseModel):
    """What ``describe`` returns, as it is stored in a PNG. The settings of an X/Y grid are those of its first image."""

    base: _Text
    dtype: _Text = ""
    prompt: _Text
    seed: int = Field(ge=0, lt=2**63)
    adapters: Annotated[dict[_Text, FiniteFloat], Field(max_length=100)]
    fusion: Fusion = "compose"
    negative_prompt: _Text
    steps: int = Field(ge=1, le=1000)
    guidance_scale: FiniteFloat
    scheduler: _Text
    width: _Side
    height: _Side
    original_size: _Pair | None = None
    crops_coords_top_left: _Pair | None = None
    target_size: _Pair | None = None
    x: PngAxis | None = None
    y: PngAxis | None = None
    notes: Annotated[list[_Text], Field(max_length=100)] = Field(default_factory=list)


def describe(pipe: StableDiffusionPipeline, request: Request, settings: FullSettings) -> dict[str, Any]:
    """Return everything needed to generate the image again, as JSON values."""
    made = {"base": base_name_of(pipe), "dtype": str(pipe.dtype).removeprefix("torch."), **dataclasses.asdict(request)}
    if request.fusion == "compose":
        del made["fusion"]  # the default, also of earlier versions
    known = {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}
    notes = prompt_notes(pipe, [request])
    return made | {"adapters": dict(request.adapters)} | known | ({"notes": notes} if notes else {})


def save_png(image: Image.Image, path: Path) -> Path:
    """Write a PNG file atomically, with the settings from ``image.info`` in its metadata; return ``path``.

    Settings are stored as JSON under "hra_diffusion" and, in the form that other programs read, under "parameters".
    """
    with atomic_path(path) as temporary:
        write_png(image, temporary)
    return path


def write_png(image: Image.Image, file: Path | IO[bytes]) -> None:
    """Write a PNG to a file, as ``save_png`` does, but not atomically."""
    info = PngImagePlugin.PngInfo()
    if settings := image.info.get(PNG_KEY):
        info.add_itxt(PNG_KEY, json.dumps(settings, ensure_ascii=False))
        info.add_itxt("parameters", _parameters(settings))
    image.save(file, "PNG", pnginfo=info)


def read_png(path: Path) -> dict[str, Any]:
    """Read the settings stored by ``save_png``. Raises UserError if the file has none, or damaged ones."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            text = image.info[PNG_KEY]
    except Exception:  # Pillow's decoders raise any exception on a damaged file
        raise UserError(f"{path.name} holds no settings of hra-diffusion") from None
    try:
        return PngSettings.model_validate_json(text).model_dump(exclude_unset=True, exclude_none=True)
    except ValidationError as error:
        raise UserError(f"the settings in {path.name} are damaged: {explain(error)}") from None


def read_image(path: Path) -> Image.Image | None:
    """Read an image file as RGB; return None if it is missing or damaged."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception:  # Pillow's decoders raise any exception on a damaged file
        return None


def slug(text: str, length: int = 40) -> str:
    """Return the text as part of a file name: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].strip("-") or "picture"


def _parameters(settings: Mapping[str, Any]) -> str:
    """Format the settings as the AUTOMATIC1111 web UI does."""
    adapters = ", ".join(f"{name}:{strength:g}" for name, strength in settings["adapters"].items())
    fusion = ", Fusion: geodesic" if settings.get("fusion") == "geodesic" else ""
    axes = "".join(
        f", {key.upper()} Type: {axis['axis']}, {key.upper()} Values: {', '.join(map(str, axis['values']))}"
        for key in ("x", "y")
        if (axis := settings.get(key))
    )
    return (
        f"{settings['prompt']}\nNegative prompt: {settings['negative_prompt']}\n"
        f"Steps: {settings['steps']}, Sampler: {settings['scheduler']}, CFG scale: {settings['guidance_scale']:g}, "
        f"Seed: {settings['seed']}, Size: {settings['width']}x{settings['height']}, Model: {settings['base']}, "
        f"Adapters: {adapters}{fusion}{axes}"
    )
