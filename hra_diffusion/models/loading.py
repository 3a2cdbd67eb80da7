"""Load a base model as a diffusers pipeline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError

from hra_diffusion.adapters import adapter_file
from hra_diffusion.adapters.quantization import quantise
from hra_diffusion.errors import BaseModelError, UserError, first_line
from hra_diffusion.hub import is_hub_id, user_errors
from hra_diffusion.models import families, folders, noise
from hra_diffusion.models.devices import device_for
from hra_diffusion.models.sources import TOYBOX, base_name, local_path, model_folder

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LOAD_LOCK = threading.Lock()
"""Acquire to load a model: accelerate's ``init_empty_weights`` patches torch.nn for the whole process meanwhile, and
overlapping patches are not undone."""
LOAD_ERRORS = (
    OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, SafetensorError
)  # fmt: skip
"""Exceptions of diffusers, transformers and safetensors for an incomplete or damaged model."""


def load_base(
    source: str = TOYBOX,
    device: str | None = None,
    dtype: str = "float32",
    weights: str = "full",
    prediction_type: str | None = None,
    rescale_zero_snr: bool | None = None,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
) -> StableDiffusionPipeline:
    """Load a Stable Diffusion pipeline without a safety checker.

    ``source``: "toybox" (embedded), a diffusers folder, a single-file ``.safetensors`` checkpoint, or a hub id.
    ``device``: the fastest available device by default. ``dtype``: "float32", "float16" or "bfloat16".
    ``weights``: "int8" or "nf4" quantises the denoiser's weights before they are moved to the device.
    ``prediction_type`` ("epsilon", "v_prediction" or "sample") and ``rescale_zero_snr`` (zero terminal SNR) override
    the base model's noise process.
    ``revision`` is a branch, a tag or a commit of a hub id, by default "main". ``variant`` chooses among the weights of
    a folder or a hub id ("fp16"), by default those without a variant. ``token`` gives access to a private or gated hub
    id, by default the one of ``hf auth login`` or HF_TOKEN; it is not stored.

    The pipeline has two more attributes: ``base_name``, the name that adapter files record, and ``base_file``, the path
    of a single-file checkpoint or None.

    Raises BaseModelError if the model is missing, damaged or not Stable Diffusion, or if its noise process is not
    discrete. Warns (Note) if the prediction type of a single file is uncertain.
    """
    if dtype not in DTYPES:
        raise BaseModelError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    if prediction_type not in (None, *noise.PREDICTION_TYPES):
        raise BaseModelError(
            f"unknown prediction type {prediction_type!r}; use one of {', '.join(noise.PREDICTION_TYPES)}"
        )
    pipe = _load(source, DTYPES[dtype], prediction_type, revision, variant, token)
    pipe.scheduler = families.of(pipe).override_noise(pipe.scheduler, prediction_type, rescale_zero_snr)
    if weights != "full":
        quantise(families.denoiser(pipe), weights)
    pipe.to(device_for(device))
    pipe.set_progress_bar_config(disable=True)
    pipe.base_name = base_name(source)
    pipe.base_file = Path(source).resolve() if Path(source).is_file() else None
    return pipe


def _load(
    source: str,
    dtype: torch.dtype,
    prediction_type: str | None,
    revision: str | None,
    variant: str | None,
    token: str | None,
) -> StableDiffusionPipeline:
    path = local_path(source)
    if revision and path.exists():
        raise BaseModelError(f"{source} is on this machine; only hub ids have revisions, not {revision!r}")
    if variant and path.is_file():
        raise BaseModelError(f"{source} is a single file; only folders and hub ids have variants, not {variant!r}")
    if path.is_file():
        if path.suffix != ".safetensors":
            raise BaseModelError(
                f"{path} is not a .safetensors file; pickled checkpoints can run code and are not opened: get the same "
                "model as .safetensors, or convert it (docs/bases.md says how); if it is an adapter, get it as "
                f".safetensors and import it with {adapter_file.IMPORT_COMMAND}"
            )
        from hra_diffusion.models import single_file

        return _checked(source, single_file.load, path, dtype, prediction_type)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    place: dict[str, Any] = {"local_files_only": True} if path.is_dir() else {"revision": revision, "token": token}
    if path.is_dir():
        folders.check_index(path)
    elif source == TOYBOX:
        raise BaseModelError(f"the embedded base is missing from {path}; install the project again")
    elif not is_hub_id(source):
        raise BaseModelError(
            f"there is no base model {source!r}: not a folder, not a .safetensors file, not a hub id like owner/name"
        )
    if folder := model_folder(source, revision):
        folders.check_weights(folder, source)
        variant = variant or folders.required_variant(folder, source)
    if variant:
        options["variant"] = variant
    return _checked(source, _from_pretrained, str(path) if path.is_dir() else source, place, options)


def _from_pretrained(name_or_path: str, place: dict[str, Any], options: dict[str, Any]) -> DiffusionPipeline:
    """Load a folder or a hub id. The scheduler is checked before the weights are loaded.

    ``place`` are the arguments for every file, ``options`` those for the weights.
    """
    from diffusers import DDIMScheduler, DiffusionPipeline

    index = cast(dict, DiffusionPipeline.load_config(name_or_path, **place))
    family = families.by_pipeline_name(index.get("_class_name"), name_or_path)
    config = cast(dict, DDIMScheduler.load_config(name_or_path, subfolder="scheduler", **place))
    family.require_scheduler(index["scheduler"][1], config)
    scheduler = noise.load_scheduler(index["scheduler"][1], config)
    absent = [names for names in family.encoders if names[0] in family.optional_encoders and not index[names[0]][0]]
    return families.pipeline_class(family).from_pretrained(
        name_or_path, scheduler=scheduler, **place, **options, **family.from_pretrained_kwargs,
        **dict.fromkeys(name for names in absent for name in names),
    )  # fmt: skip


def _checked(source: str, load: Callable[..., Any], *arguments: Any) -> StableDiffusionPipeline:
    """Return ``load(*arguments)``. Raises BaseModelError if that fails, or if the pipeline is not supported."""
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        with LOAD_LOCK:
            pipe = load(*arguments)
    except UserError:
        raise
    except (*LOAD_ERRORS, SingleFileComponentError) as error:
        if isinstance(error.__context__, GatedRepoError):  # diffusers says that there is no such model
            with user_errors(source):
                raise error.__context__ from None
        raise BaseModelError(f"the base model {source!r} can't be loaded: {first_line(error)}") from error
    if reason := _unsupported(pipe):
        raise BaseModelError(f"{source!r} can't be used: {reason}")
    return cast("StableDiffusionPipeline", pipe)


def _unsupported(pipe: Any) -> str | None:
    """Return why a pipeline is not a supported base model, or None."""
    family, config = families.of(pipe), families.denoiser(pipe).config
    if config.in_channels != family.latent_channels(pipe.vae):
        return "its denoiser takes more than latents: an inpainting, depth or editing model, not a text-to-image model"
    required = [name for name, _ in family.encoders if name not in family.optional_encoders]
    if any(getattr(pipe, name, None) is None for name in required):
        return "a text encoder is missing: an SDXL refiner, or an incomplete copy"
    if (kind := config.get("addition_embed_type")) not in family.addition_embed_types:
        return f"its UNet takes {kind!r} conditioning, which its pipeline does not provide"
    return None
