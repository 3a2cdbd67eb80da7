"""Adapters on a diffusers pipeline: load, save, activate, merge and unload them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from hra_diffusion.adapters import activation, adapter_file, attachment, fingerprint, loading, merging
from hra_diffusion.adapters.adapter_file import AdapterInfo
from hra_diffusion.adapters.targets import base_modules
from hra_diffusion.errors import Note, UserError
from hra_diffusion.models import noise
from hra_diffusion.models.sources import base_name

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
"""The components of a pipeline that take adapters."""


def base_name_of(pipe: DiffusionPipeline) -> str:
    """Return the name that files record for the base model of a pipeline, loaded by ``load_base`` or by diffusers."""
    return getattr(pipe, "base_name", None) or base_name(str(pipe.config.get("_name_or_path") or "unknown"))


def components(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Return the components of a pipeline that take adapters, by name."""
    return {name: model for name in COMPONENTS if isinstance(model := getattr(pipe, name, None), nn.Module)}


def load(pipe: DiffusionPipeline, file: str | Path, name: str | None = None) -> AdapterInfo:
    """Load an adapter file onto a pipeline and make it the only active adapter, at strength 1.

    ``name``: name on the pipeline; by default the one in the file. Raises AdapterFileError (see ``loading.load``).
    Warns (Note) if the adapter was trained for another noise process.
    """
    info = loading.load(Path(file), components(pipe), name)
    if reason := noise_incompatibility(info, pipe):
        warnings.warn(f"{file} was {reason}", Note, stacklevel=2)
    activate(pipe, {info.name: 1.0})
    return info


def incompatibility(info: AdapterInfo, pipe: DiffusionPipeline) -> str:
    """Return why an adapter is incompatible with this base model, or "" if it is compatible."""
    models = components(pipe)
    for component, probes in info.fingerprint.items():
        layers = dict(base_modules(models[component])) if component in models else {}
        if any(path not in layers for path in probes):
            return f"made for another base model, {info.base}: it can't be used with {base_name_of(pipe)}"
    if fingerprint.distance(info.fingerprint, models) > fingerprint.TOLERANCE:
        return f"made for {info.base}, but its weights differ from those in use: expect poor results"
    return noise_incompatibility(info, pipe)


def noise_incompatibility(info: AdapterInfo, pipe: DiffusionPipeline) -> str:
    """Return how this base model's noise process differs from the one in training, or "" if equal or unknown."""
    if not info.prediction_type:
        return ""
    settings = noise.process_settings(cast(Any, pipe).scheduler)
    if settings == {"prediction_type": info.prediction_type, "zero_snr": info.zero_snr}:
        return ""
    trained, used = noise.describe(info.prediction_type, info.zero_snr), noise.describe(**settings)
    return f"trained on a base that predicts {trained}; this one predicts {used}: expect poor results"


def save(pipe: DiffusionPipeline, file: str | Path, name: str, trigger: str = "", class_noun: str = "") -> None:
    """Save an adapter on the pipeline to a file. Raises UserError for an unknown name, or FileError."""
    require_loaded(pipe, [name])
    metadata = {"base": base_name_of(pipe), "trigger": trigger, "class_noun": class_noun}
    metadata |= noise.process_settings(cast(Any, pipe).scheduler)
    adapter_file.save(Path(file), components(pipe), adapter_file.attached_info(components(pipe), name, **metadata))


def unload(pipe: DiffusionPipeline, name: str) -> None:
    """Remove an adapter. Without its last adapter the pipeline has its original layers again."""
    loading.unload(components(pipe), name)


def loaded(pipe: DiffusionPipeline) -> list[str]:
    """Return the names of the adapters on the pipeline, active or not."""
    return list(dict.fromkeys(name for model in components(pipe).values() for name in attachment.adapter_names(model)))


def require_loaded(pipe: DiffusionPipeline, names: Iterable[str]) -> None:
    """Raise UserError for the first name without an adapter on the pipeline."""
    known = loaded(pipe)
    if unknown := sorted(set(names) - set(known)):
        raise UserError(f"no adapter named {unknown[0]!r} is loaded; loaded: {', '.join(known) or 'none'}")


def active(pipe: DiffusionPipeline) -> dict[str, float]:
    """Return the active adapters and their strengths, in order of application."""
    states = [attachment.state_of(model) for model in components(pipe).values()]
    return {name: strength for state in states if state for name, strength in state.active}


def activate(pipe: DiffusionPipeline, strengths: Mapping[str, float]) -> None:
    """Apply these adapters at these strengths, in this order; with an empty mapping, the base model alone.

    Raises UserError for a name without an adapter on the pipeline.
    """
    require_loaded(pipe, strengths)
    for model in components(pipe).values():
        names = attachment.adapter_names(model)
        activation.activate(model, {name: strength for name, strength in strengths.items() if name in names})


def merge(pipe: DiffusionPipeline) -> None:
    """Merge the active adapters into the weights of all components."""
    for model in components(pipe).values():
        merging.merge(model)


def unmerge(pipe: DiffusionPipeline) -> None:
    """Restore the weights that ``merge`` replaced, bit for bit."""
    for model in components(pipe).values():
        merging.unmerge(model)
