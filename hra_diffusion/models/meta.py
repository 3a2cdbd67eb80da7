"""Pipelines on PyTorch's meta device, with shapes but no weights, from a base model's configuration."""

from __future__ import annotations

import functools
import inspect
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hra_diffusion.errors import BaseModelError, Note, UserError, first_line
from hra_diffusion.hub import is_hub_id
from hra_diffusion.models import families, hub, single_file
from hra_diffusion.models.families.architectures import RELEASED, Architecture, on_meta
from hra_diffusion.models.folders import INDEX, check_index
from hra_diffusion.models.loading import LOAD_ERRORS
from hra_diffusion.models.sources import base_version, local_path, model_folder

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def meta_pipeline(
    base: str | StableDiffusionPipeline, dtype: torch.dtype = torch.float32, prediction_type: str | None = None
) -> StableDiffusionPipeline:
    """Build a pipeline on the meta device for a base model or a loaded pipeline, without tokenizers and scheduler.

    The configurations of a hub id outside the local cache are downloaded (see ``architecture``). ``prediction_type``
    overrides the one of a single file, as in ``load_base``. Raises BaseModelError.
    """
    configs = architecture(base, prediction_type) if isinstance(base, str) else _architecture_of(base)
    family: Any = families.by_pipeline_name(configs.pipeline, configs.name)
    models: dict[str, Any] = {family.denoiser: on_meta(configs.build_denoiser), "vae": on_meta(configs.build_vae)}
    names = [name for name, _ in family.encoders]
    models |= dict(
        zip(names, on_meta(configs.build_encoders), strict=False)
    )  # an optional one, the last, may be missing
    for model in models.values():
        nn.Module.to(model.requires_grad_(False).eval(), dtype)
    kind = families.pipeline_class(family)
    expected = inspect.signature(kind).parameters.values()
    absent = {part.name: None for part in expected if part.default is part.empty}
    return kind(**absent | models | dict(family.from_pretrained_kwargs))


def architecture(base: str, prediction_type: str | None = None) -> Architecture:
    """Return the configurations of a base model. Those of a hub id outside the local cache are downloaded.

    If the hub can't be reached, or doesn't give them, they are those of the released model that the name stands for
    (see ``base_version``), with a warning (Note). Raises BaseModelError if they can't be read.
    """
    path = local_path(base)
    folder = model_folder(base) or (_downloaded(base) if is_hub_id(base) and not path.exists() else None)
    try:
        if path.is_file():
            return single_file.detect_architecture(path, prediction_type)
        if path.is_dir():
            check_index(path)
        if folder and (path.is_dir() or (folder / "vae" / "config.json").is_file()):
            return _architecture_in(folder)
    except UserError:
        raise
    except LOAD_ERRORS as error:
        raise BaseModelError(f"the base model {base!r} can't be read: {first_line(error)}") from error
    return RELEASED[base_version(base)]


@functools.cache  # one attempt in a process: fitting a run into memory asks many times
def _downloaded(name: str) -> Path | None:
    """Download the configurations of a hub id; return their folder, or None, with a warning, if that fails."""
    try:
        hub.download_configurations(name)
    except UserError as error:
        assumed = RELEASED[base_version(name)].name
        warnings.warn(f"memory is predicted with the sizes of {assumed}: {error}", Note, stacklevel=4)
    return model_folder(name)


def _architecture_in(folder: Path) -> Architecture:
    index = _json(folder / INDEX)
    family = families.by_pipeline_name(index.get("_class_name"), str(folder))
    paths = [(name, folder / name / "config.json") for name, _ in family.encoders]
    missing = [name for name, path in paths if name in family.optional_encoders and not path.is_file()]
    encoders = tuple(_json(path) for name, path in paths if name not in missing)
    unet, vae = (_json(folder / name / "config.json") for name in (family.denoiser, "vae"))
    return Architecture(folder.name, family.pipeline, unet, vae, encoders, ("", {}), ())


def _architecture_of(pipe: StableDiffusionPipeline) -> Architecture:
    family: Any = families.of(pipe)
    found: list[Any] = families.text_encoders(pipe)
    encoders = tuple(encoder.config.to_dict() | {"architectures": [type(encoder).__name__]} for encoder in found)
    parts = families.denoiser(pipe), pipe.vae
    denoiser, vae = (dict(part.config) | {"_class_name": type(part).__name__} for part in parts)
    return Architecture("", family.pipeline, denoiser, vae, encoders, ("", {}), ())


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
