"""Adapters on a diffusers pipeline: load, save, activate, merge and unload them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from hra_diffusion.adapters import activation, adapter_file, attachment, fingerprint, loading, merging
from hra_diffusion.adapters.adapter_file import AdapterInfo
from hra_diffusion.errors import Note, UserError
from hra_diffusion.models import noise
from hra_diffusion.models.sources import base_name

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
"""The components of a pipeline that take adapters."""


def base_name_of(pipe: DiffusionPipeline) -> str:
    """How files name the base of a pipeline, loaded by us or by the person."""
    return getattr(pipe, "base_name", None) or base_name(str(pipe.config.get("_name_or_path") or "unknown"))


def components(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """The parts of the pipeline that adapters live on, by name."""
    return {name: part for name in COMPONENTS if isinstance(part := getattr(pipe, name, None), nn.Module)}


def load(pipe: DiffusionPipeline, file: str | Path, name: str | None = None) -> AdapterInfo:
    """Put a saved adapter on a pipeline and make it the active one. Raises AdapterFileError (see loading.load).

    Warns (Note) if it was trained for another noise process.
    """
    info = loading.load(Path(file), components(pipe), name)
    if reason := noise_incompatibility(info, pipe):
        warnings.warn(f"{file} was {reason}", Note, stacklevel=2)
    activate(pipe, {info.name: 1.0})
    return info


def incompatibility(info: AdapterInfo, pipe: DiffusionPipeline) -> str:
    """Why an adapter does not belong to this base, in a sentence; "" if it does."""
    models = components(pipe)
    for component, probes in info.fingerprint.items():
        layers = dict(models[component].named_modules()) if component in models else {}
        if any(path not in layers for path in probes):
            return f"made for another base model, {info.base}: it can't be used with {base_name_of(pipe)}"
    if fingerprint.distance(info.fingerprint, models) > fingerprint.TOLERANCE:
        return f"made for {info.base}, but its weights differ from those in use: expect poor results"
    return noise_incompatibility(info, pipe)


def noise_incompatibility(info: AdapterInfo, pipe: DiffusionPipeline) -> str:
    """How the noise process an adapter was trained for differs from this base's; "" if it does not, or is unknown."""
    if not info.prediction_type:
        return ""
    here = noise.process_settings(cast(Any, pipe).scheduler)
    if here == {"prediction_type": info.prediction_type, "zero_snr": info.zero_snr}:
        return ""
    trained, used = noise.describe(info.prediction_type, info.zero_snr), noise.describe(**here)
    return f"trained on a base that predicts {trained}; this one predicts {used}: expect poor results"


def save(pipe: DiffusionPipeline, file: str | Path, name: str, trigger: str = "", class_noun: str = "") -> None:
    """Write an adapter that is on the pipeline to a file. Raises UserError for an unknown one, or FileError."""
    require_loaded(pipe, [name])
    facts = {"base": base_name_of(pipe), "trigger": trigger, "class_noun": class_noun}
    facts |= noise.process_settings(cast(Any, pipe).scheduler)
    adapter_file.save(Path(file), components(pipe), adapter_file.attached_info(components(pipe), name, **facts))


def unload(pipe: DiffusionPipeline, name: str) -> None:
    """Take an adapter off the pipeline; with the last one the pipeline is as it was."""
    loading.unload(components(pipe), name)


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
    states = [attachment.state_of(model) for model in components(pipe).values()]
    return {name: strength for state in states if state for name, strength in state.active}


def activate(pipe: DiffusionPipeline, strengths: Mapping[str, float]) -> None:
    """Apply these adapters at these strengths, in this order; an empty mapping is the base.

    Raises ValueError for a name that is not on the pipeline.
    """
    require_loaded(pipe, strengths)
    for model in components(pipe).values():
        here = attachment.adapter_names(model)
        activation.activate(model, {name: strength for name, strength in strengths.items() if name in here})


def merge(pipe: DiffusionPipeline) -> None:
    """Write the active adapters into the weights of all components."""
    for model in components(pipe).values():
        merging.merge(model)


def unmerge(pipe: DiffusionPipeline) -> None:
    """Bring back the bits that ``merge`` replaced."""
    for model in components(pipe).values():
        merging.unmerge(model)
