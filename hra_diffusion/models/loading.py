"""Load a base model as a diffusers pipeline."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError

from hra_diffusion.adapters import adapter_file
from hra_diffusion.adapters.quantization import quantise
from hra_diffusion.errors import BaseModelError, UserError
from hra_diffusion.libraries import only_errors_logged
from hra_diffusion.models import families, folders, noise
from hra_diffusion.models.devices import device_for
from hra_diffusion.models.sources import ASSETS, TOYBOX, base_name, cached_folder

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LOADING = threading.Lock()
"""Held while a model is loaded. The libraries change torch.nn for the whole process until it is there (accelerate's
init_empty_weights): of two threads that load at once, the later would leave every module made from then on empty."""
UNREADABLE = (
    OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, SafetensorError
)  # fmt: skip
"""What the libraries below raise for a model that is not whole."""


def load_base(
    source: str = TOYBOX,
    device: str | None = None,
    dtype: str = "float32",
    weights: str = "full",
    prediction_type: str | None = None,
    rescale_zero_snr: bool | None = None,
) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline, without a safety checker, on ``device`` (the best there is by default).

    ``source``: "toybox" (embedded), a diffusers folder, a single ``.safetensors`` checkpoint, or a hub id.
    ``weights``: "int8" or "nf4" stores the UNet's in fewer bits (see quantised), before they reach the device.
    ``prediction_type`` ("epsilon", "v_prediction" or "sample") and ``rescale_zero_snr`` (zero terminal SNR) override
    what the base says of its noise process.
    ``pipe.base_name`` is how adapters will name it; ``pipe.base_file`` is its single checkpoint, or None.
    Raises BaseModelError if it is missing, not Stable Diffusion, or its noise process is not discrete (see noise).
    Warns (Note) where the prediction type of a single file is not certain.
    """
    if dtype not in DTYPES:
        raise BaseModelError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    if prediction_type not in (None, *noise.PREDICTION_TYPES):
        raise BaseModelError(
            f"unknown prediction type {prediction_type!r}; use one of {', '.join(noise.PREDICTION_TYPES)}"
        )
    with only_errors_logged():
        for family in families.FAMILIES:
            families.pipeline_class(family)
    pipe = _read(source, DTYPES[dtype], prediction_type)
    pipe.scheduler = noise.override(pipe.scheduler, prediction_type, rescale_zero_snr)
    if weights != "full":
        quantise(pipe.unet, weights)
    pipe.to(device_for(device))
    pipe.set_progress_bar_config(disable=True)
    pipe.base_name = base_name(source)
    pipe.base_file = Path(source).resolve() if Path(source).is_file() else None
    return pipe


def _read(source: str, dtype: torch.dtype, prediction_type: str | None) -> StableDiffusionPipeline:
    path = ASSETS / TOYBOX if source == TOYBOX else Path(source)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise BaseModelError(
                f"{path} is not a .safetensors file; pickled checkpoints can run code and are not opened: get the same "
                "model as .safetensors, or convert it (docs/bases.md says how); an adapter is no base, it comes in "
                f"with {adapter_file.IMPORT_COMMAND} once it is .safetensors"
            )
        from hra_diffusion.models import single_file

        return _open(source, single_file.load, path, dtype, prediction_type)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if path.is_dir():
        folders.check_index(path)
        options["local_files_only"] = True
    elif source == TOYBOX:
        raise BaseModelError(f"the embedded base is missing from {path}; install the project again")
    elif not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        raise BaseModelError(
            f"there is no base model {source!r}: not a folder, not a .safetensors file, not a hub id like owner/name"
        )
    if folder := path if path.is_dir() else cached_folder(source):
        folders.check_weights(folder, source)
        if variant := folders.only_variant(folder, source):
            options["variant"] = variant
    return _open(source, _from_pretrained, str(path) if path.is_dir() else source, options)


def _from_pretrained(place: str, options: dict[str, Any]) -> DiffusionPipeline:
    """A folder or a hub id, by the class that it says it is. Raises BaseModelError for one that no family has."""
    from diffusers import DDIMScheduler, DiffusionPipeline

    local = {key: options[key] for key in ("local_files_only",) if key in options}
    index = cast(dict, DiffusionPipeline.load_config(place, **local))
    family = families.by_pipeline_name(index.get("_class_name"), place)
    config = cast(dict, DDIMScheduler.load_config(place, subfolder="scheduler", **local))
    scheduler = noise.load_scheduler(
        index["scheduler"][1], config
    )  # first: what is refused is refused before its weights load
    return families.pipeline_class(family).from_pretrained(
        place, scheduler=scheduler, **options, **family.from_pretrained_kwargs
    )


def _open(source: str, reader: Any, *arguments: Any) -> StableDiffusionPipeline:
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        with LOADING:
            pipe = reader(*arguments)
    except UserError:
        raise
    except (*UNREADABLE, SingleFileComponentError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BaseModelError(f"the base model {source!r} can't be loaded: {reason[:300]}") from error
    if reason := _unusable(pipe):
        raise BaseModelError(f"{source!r} can't be used: {reason}")
    return cast("StableDiffusionPipeline", pipe)


def _unusable(pipe: Any) -> str | None:
    """Why a pipeline that loaded is no base to work on, or None."""
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        return "its UNet takes more than latents: an inpainting, depth or editing model, not text to image"
    if any(getattr(pipe, name, None) is None for name, _ in families.of(pipe).encoders):
        return "a text encoder is missing: an SDXL refiner, not a base"
    if pipe.unet.config.addition_embed_type not in families.of(pipe).addition_embed_types:
        return f"its UNet wants {pipe.unet.config.addition_embed_type!r} conditioning, which its kind of pipeline lacks"
    return None
