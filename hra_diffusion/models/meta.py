"""A base as shapes without memory: a pipeline on PyTorch's meta device, from its configuration alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hra_diffusion.errors import BaseModelError, UserError
from hra_diffusion.models import families, single_file
from hra_diffusion.models.families.architectures import RELEASED, Architecture, on_meta
from hra_diffusion.models.loading import UNREADABLE
from hra_diffusion.models.sources import ASSETS, TOYBOX, base_version, cached_folder

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def meta_pipeline(
    base: str | StableDiffusionPipeline, dtype: torch.dtype = torch.float32, prediction_type: str | None = None
) -> StableDiffusionPipeline:
    """The base's pipeline, or that of one already held, as shapes: no weights, tokenizers or scheduler.

    A hub id that is not in the local cache is taken for the released Stable Diffusion its name stands for.
    ``prediction_type`` overrides what a single file states, as in ``load_base``.
    """
    made = architecture(base, prediction_type) if isinstance(base, str) else _of_pipeline(base)
    family: Any = families.by_pipeline_name(made.pipeline, made.name)
    parts: dict[str, Any] = {"unet": on_meta(made.build_unet), "vae": on_meta(made.build_vae)}
    for (encoder, _), built in zip(family.encoders, on_meta(made.build_encoders), strict=True):
        parts[encoder] = built
    for part in parts.values():
        nn.Module.to(part.requires_grad_(False).eval(), dtype)
    absent = dict.fromkeys(("scheduler", "feature_extractor", *(name for _, name in family.encoders)))
    return families.pipeline_class(family)(**parts, **absent, **family.from_pretrained_kwargs)


def architecture(base: str, prediction_type: str | None = None) -> Architecture:
    """The configurations of a base. Raises BaseModelError for files that are none."""
    path = ASSETS / TOYBOX if base == TOYBOX else Path(base)
    folder = path if path.is_dir() else cached_folder(base)
    try:
        if path.is_file():
            return single_file.detect_architecture(path, prediction_type)
        if folder and (path.is_dir() or (folder / "vae" / "config.json").is_file()):
            return _of_folder(folder)
    except UserError:
        raise
    except UNREADABLE as error:
        raise BaseModelError(f"the base model {base!r} can't be read: {str(error)[:300]}") from error
    return RELEASED[base_version(base)]


def _of_folder(folder: Path) -> Architecture:
    index = _json(folder / "model_index.json")
    family = families.by_pipeline_name(index.get("_class_name"), str(folder))
    encoders = tuple(_json(folder / name / "config.json") for name, _ in family.encoders)
    unet, vae = (_json(folder / name / "config.json") for name in ("unet", "vae"))
    return Architecture(folder.name, family.pipeline, unet, vae, encoders, ("", {}), ())


def _of_pipeline(pipe: StableDiffusionPipeline) -> Architecture:
    family: Any = families.of(pipe)
    encoders = tuple(getattr(pipe, name).config.to_dict() for name, _ in family.encoders)
    return Architecture(
        "", family.pipeline, dict(pipe.unet.config), dict(pipe.vae.config), encoders, ("", {}), ()
    )  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
