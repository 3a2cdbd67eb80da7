"""A base model held as a diffusers pipeline, and the adapters put on and off it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import nn

from hra_diffusion import adapter_file, attachment
from hra_diffusion.adapter_file import AdapterInfo
from hra_diffusion.errors import UserError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

TOYBOX = "toybox"
ASSETS = Path(__file__).resolve().parent.parent / "assets"
COMPONENTS = ("unet", "text_encoder")
"""The parts of a pipeline that adapters live on."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class BaseModelError(UserError):
    """A base model can't be used: what is wrong, where, and what to do."""


def load_base(source: str = TOYBOX, device: str | None = None, dtype: str = "float32") -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline, without a safety checker, on ``device`` (the best there is by default).

    ``source``: "toybox" (embedded), a diffusers folder, a single ``.safetensors`` checkpoint, or a hub id.
    ``pipe.base_name`` is how adapters will name it. Raises BaseModelError if it is missing or not Stable Diffusion.
    """
    if dtype not in DTYPES:
        raise BaseModelError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    pipe = _read(source, DTYPES[dtype]).to(_device(device))
    pipe.set_progress_bar_config(disable=True)
    pipe.base_name = base_name(source)
    return pipe


def base_name(source: str) -> str:
    """How files name this base: a folder's or file's own name (never its path), or the hub id."""
    return Path(source).resolve().name if Path(source).exists() and source != TOYBOX else source


def name_of(pipe: DiffusionPipeline) -> str:
    """How files name the base of a pipeline, loaded by us or by the person."""
    return getattr(pipe, "base_name", None) or base_name(str(pipe.config.get("_name_or_path") or "unknown"))


def components(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """The parts of the pipeline that adapters live on, by name."""
    return {name: part for name in COMPONENTS if isinstance(part := getattr(pipe, name, None), nn.Module)}


def load(pipe: DiffusionPipeline, file: str | Path, name: str | None = None) -> AdapterInfo:
    """Put a saved adapter on a pipeline and make it the active one. Raises AdapterFileError (see adapter_file.load)."""
    info = adapter_file.load(Path(file), components(pipe), name)
    activate(pipe, {info.name: 1.0})
    return info


def save(pipe: DiffusionPipeline, file: str | Path, name: str, trigger: str = "", class_noun: str = "") -> None:
    """Write an adapter that is on the pipeline to a file. Raises UserError for an unknown one, or FileError."""
    require_loaded(pipe, [name])
    facts = {"base": name_of(pipe), "trigger": trigger, "class_noun": class_noun}
    adapter_file.save(Path(file), components(pipe), adapter_file.info_of(components(pipe), name, **facts))


def unload(pipe: DiffusionPipeline, name: str) -> None:
    """Take an adapter off the pipeline; with the last one the pipeline is as it was."""
    adapter_file.unload(components(pipe), name)


def loaded(pipe: DiffusionPipeline) -> list[str]:
    """Names of the adapters on the pipeline."""
    return list(dict.fromkeys(name for model in components(pipe).values() for name in attachment.adapter_names(model)))


def require_loaded(pipe: DiffusionPipeline, names: Iterable[str]) -> None:
    """Raises UserError naming the first adapter that is not on the pipeline, and those that are."""
    here = loaded(pipe)
    if unknown := sorted(set(names) - set(here)):
        raise UserError(f"no adapter named {unknown[0]!r} is loaded; loaded: {', '.join(here) or 'none'}")


def active(pipe: DiffusionPipeline) -> dict[str, float]:
    """The adapters in use and their strengths, in order."""
    routings = [attachment.routing_of(model) for model in components(pipe).values()]
    return {name: strength for routing in routings if routing for name, strength in routing.mix}


def activate(pipe: DiffusionPipeline, strengths: Mapping[str, float]) -> None:
    """Apply these adapters at these strengths, in this order; an empty mapping is the base.

    Raises ValueError for a name that is not on the pipeline.
    """
    require_loaded(pipe, strengths)
    for model in components(pipe).values():
        here = attachment.adapter_names(model)
        attachment.activate(model, {name: strength for name, strength in strengths.items() if name in here})


def merge(pipe: DiffusionPipeline) -> None:
    """Write the active adapters into the weights of all components."""
    for model in components(pipe).values():
        attachment.merge(model)


def unmerge(pipe: DiffusionPipeline) -> None:
    """Bring back the bits that ``merge`` replaced."""
    for model in components(pipe).values():
        attachment.unmerge(model)


def _read(source: str, dtype: torch.dtype) -> StableDiffusionPipeline:
    from diffusers import StableDiffusionPipeline

    path = ASSETS / TOYBOX if source == TOYBOX else Path(source)
    options: dict[str, Any] = {"dtype": dtype, "safety_checker": None, "requires_safety_checker": False}
    if path.is_dir():
        _check_folder(path)
        options |= {"local_files_only": True, "use_safetensors": True}
        return _open(source, StableDiffusionPipeline.from_pretrained, str(path), **options)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise BaseModelError(
                f"{path} is not a .safetensors file; pickled checkpoints are not opened, convert it first"
            )
        return _open(source, StableDiffusionPipeline.from_single_file, str(path), **options)
    if source == TOYBOX:
        raise BaseModelError(f"the embedded base is missing from {path}; install the project again")
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or os.sep * 2 in source:
        raise BaseModelError(
            f"there is no base model {source!r}: not a folder, not a .safetensors file, not a hub id like owner/name"
        )
    return _open(source, StableDiffusionPipeline.from_pretrained, source, use_safetensors=True, **options)


def _check_folder(path: Path) -> None:
    index = path / "model_index.json"
    if not index.is_file():
        raise BaseModelError(f"{path} holds no model_index.json: not a diffusers model folder")
    try:
        kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError):
        raise BaseModelError(f"{index} is damaged: not a JSON object; copy the model again") from None
    if kind != "StableDiffusionPipeline":
        raise BaseModelError(f"{path} is a {kind}; only StableDiffusionPipeline folders can be used")


_UNREADABLE = (
    OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError
)  # fmt: skip
"""What the libraries below raise for a model that is not whole."""


def hide_loading_bars() -> None:
    """For programs: the loading bars of the libraries below are not shown from now on."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


def _open(source: str, reader: Any, place: str, **options: Any) -> StableDiffusionPipeline:
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        pipe = reader(place, **options)
    except (*_UNREADABLE, SingleFileComponentError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BaseModelError(f"the base model {source!r} can't be loaded: {reason[:300]}") from error
    unet = getattr(pipe, "unet", None)
    if unet is None or unet.config.in_channels != pipe.vae.config.latent_channels:
        raise BaseModelError(
            f"{source!r} is not a text-to-image Stable Diffusion model; inpainting bases can't be used"
        )
    if unet.config.addition_embed_type not in (None, "text"):
        raise BaseModelError(f"{source!r} is a Stable Diffusion XL model; only Stable Diffusion 1 and 2 can be used")
    return cast("StableDiffusionPipeline", pipe)


def _device(name: str | None) -> str:
    if name and name.startswith("cuda") and not torch.cuda.is_available():
        raise BaseModelError("no CUDA device is available here; use --device cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise BaseModelError("no MPS device is available here; use --device cpu")
    if name:
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
