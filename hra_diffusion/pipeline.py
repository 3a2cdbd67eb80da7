"""Adapters on a diffusers pipeline or on any torch model: attach, load, save, activate, merge and unload them.

A target is a pipeline, whose denoiser and text encoders take adapters, or a single model. Threads may share a target:
what changes it holds its lock (locks.lock_of), as generation does. A pipeline and its denoiser are two targets.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from torch import nn

from hra_diffusion.adapters import activation, adapter_file, attachment, fingerprint, hub, loading, merging
from hra_diffusion.adapters.adapter_file import AdapterInfo
from hra_diffusion.adapters.linear_map import unsupported_reason
from hra_diffusion.adapters.registry import MethodConfig
from hra_diffusion.adapters.state import AdapterState, Fusion
from hra_diffusion.adapters.targets import base_modules
from hra_diffusion.errors import Note, UserError
from hra_diffusion.locks import lock_of
from hra_diffusion.models import families, noise
from hra_diffusion.models.sources import base_name

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    Target: TypeAlias = DiffusionPipeline | nn.Module

COMPONENT_OF_CLASS: Mapping[str, str] = {
    "UNet2DConditionModel": "unet",
    "CLIPTextModel": "text_encoder",
    **dict.fromkeys(families.TRANSFORMERS, "transformer"),
}
"""The component that a single model is in adapter files, by its class; "model" for others."""


def base_name_of(target: Target) -> str:
    """Return the name that files record for the base model, loaded by ``load_base``, diffusers or transformers."""
    if own := getattr(target, "base_name", None):
        return cast(str, own)
    config: Any = getattr(target, "config", None) or {}
    found = config.get("_name_or_path") if isinstance(config, Mapping) else getattr(config, "_name_or_path", None)
    return base_name(str(found or "unknown"))


def components(target: Target) -> dict[str, nn.Module]:
    """Return the models that take adapters, by component name."""
    if isinstance(target, nn.Module):
        return {COMPONENT_OF_CLASS.get(type(target).__name__, "model"): target}
    return {name: model for name in families.COMPONENTS if isinstance(model := getattr(target, name, None), nn.Module)}


def attach(
    target: Target,
    method: str = "hra",
    options: Mapping | MethodConfig | None = None,
    *,
    name: str = "default",
    targets: str | Sequence[str] = "attention",
    exclude: str = "",
    seed: int = 0,
    ranks: Mapping[str, int] | None = None,
) -> list[str]:
    """Add a new adapter to a model, or to the denoiser of a pipeline (see ``attachment.attach``).

    Returns the paths of the adapted layers.
    """
    model = target if isinstance(target, nn.Module) else families.denoiser(target)
    return attachment.attach(
        model, method, options, name=name, targets=targets, exclude=exclude, seed=seed, ranks=ranks
    )


def detach(target: Target, name: str | None = None) -> None:
    """Remove one adapter, or all of them. Without adapters the models are exactly what they were before.

    Merged adapters are unmerged first. Raises UserError for an unknown name.
    """
    if name is not None:
        require_loaded(target, [name])
    for model in components(target).values():
        if name is None or name in attachment.adapter_names(model):
            attachment.detach(model, name)


def load(
    target: Target,
    source: str | Path,
    name: str | None = None,
    *,
    weight_name: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> AdapterInfo:
    """Load an adapter and make it the only active one, at strength 1.

    Args:
        source: a file, a folder with one, or a hub id: "owner/name" or "owner/name:file.safetensors".
        name: name on the target; by default the one in the file.
        weight_name: the file in a folder or a repository that has several.
        revision: branch, tag or commit of the repository.
        token: access token of the hub; by default that of ``hf auth login``.

    Raises AdapterFileError (see ``loading.load``) and HubError. Warns (Note) if the adapter was trained for another
    noise process.
    """
    file = hub.local_file(source, weight_name, revision, token)
    with lock_of(target):
        info = loading.load(file, components(target), name)
        activate(target, {info.name: 1.0})
    if reason := noise_incompatibility(info, target):
        warnings.warn(f"{file} was {reason}", Note, stacklevel=2)
    return info


def incompatibility(info: AdapterInfo, target: Target) -> str:
    """Return why an adapter is incompatible with this base model, or "" if it is compatible."""
    models = components(target)
    for component, probes in info.fingerprint.items():
        modules = base_modules(models[component]) if component in models else ()
        layers = {path for path, module in modules if not unsupported_reason(module)}
        if not layers.issuperset(probes):
            return f"made for another base model, {info.base}: it can't be used with {base_name_of(target)}"
    if fingerprint.distance(info.fingerprint, models) > fingerprint.TOLERANCE:
        return f"made for {info.base}, but its weights differ from those in use: expect poor results"
    return noise_incompatibility(info, target)


def noise_incompatibility(info: AdapterInfo, target: Target) -> str:
    """Return how this base model's noise process differs from the one in training, or "" if equal or unknown."""
    if not info.prediction_type or isinstance(target, nn.Module):
        return ""
    settings = noise.process_settings(cast(Any, target).scheduler)
    if settings == {"prediction_type": info.prediction_type, "zero_snr": info.zero_snr}:
        return ""
    trained, used = noise.describe(info.prediction_type, info.zero_snr), noise.describe(**settings)
    return f"trained on a base that predicts {trained}; this one predicts {used}: expect poor results"


def save(target: Target, file: str | Path, name: str, trigger: str = "", class_noun: str = "") -> None:
    """Save an adapter to a file, with all that is known about it.

    ``trigger`` and ``class_noun`` replace those that it was loaded or trained with. Raises UserError for an unknown
    name, or FileError.
    """
    require_loaded(target, [name])
    known: dict[str, Any] = {"base": base_name_of(target)}
    if not isinstance(target, nn.Module):
        known |= noise.process_settings(cast(Any, target).scheduler)
    known |= facts(target, name) | {
        key: value for key, value in {"trigger": trigger, "class_noun": class_noun}.items() if value
    }
    adapter_file.save(Path(file), components(target), adapter_file.attached_info(components(target), name, **known))


def facts(target: Target, name: str) -> dict[str, Any]:
    """Return what is known about an adapter: fields of AdapterInfo, such as trigger, class noun and training."""
    return next((dict(state.facts[name]) for state in _states(target) if name in state.facts), {})


def subject_of(target: Target, name: str) -> str:
    """Return the subject of an adapter in prompts, such as "sks dog", or "" if it is not known."""
    known = facts(target, name)
    return f"{known.get('trigger', '')} {known.get('class_noun', '')}".strip()


def unload(target: Target, name: str) -> None:
    """Remove an adapter. Without its last adapter the target has its original layers again."""
    with lock_of(target):
        loading.unload(components(target), name)


def loaded(target: Target) -> list[str]:
    """Return the names of the adapters, active or not."""
    models = components(target).values()
    return list(dict.fromkeys(name for model in models for name in attachment.adapter_names(model)))


def require_loaded(target: Target, names: Iterable[str]) -> None:
    """Raise UserError for the first name without an adapter."""
    known = loaded(target)
    if unknown := sorted(set(names) - set(known)):
        raise UserError(f"no adapter named {unknown[0]!r} is loaded; loaded: {', '.join(known) or 'none'}")


def active(target: Target) -> dict[str, float]:
    """Return the active adapters and their strengths, in order of application."""
    return {name: strength for state in _states(target) for name, strength in state.active}


def active_fusion(target: Target) -> Fusion:
    """Return how the active adapters act on the layers that they share."""
    states = _states(target)
    return states[0].fusion if states else "compose"


def activate(target: Target, strengths: Mapping[str, float], fusion: Fusion = "compose") -> None:
    """Apply these adapters at these strengths; with an empty mapping, the base model alone.

    ``fusion``: "compose" applies them in this order; "geodesic" fuses rotations (HRA, HOFT, SHOFT) that share a layer,
    whatever their order: strengths that sum to 1 give their mean on the rotation group (see
    ``adapters.fusion.fuse_rotations``). Raises UserError for a name without an adapter, or one that can't be fused.
    """
    with lock_of(target):
        require_fusable(target, strengths, fusion)
        for model in components(target).values():
            activation.activate(model, strengths_on(model, strengths), fusion)


def require_fusable(target: Target, strengths: Mapping[str, float], fusion: Fusion) -> None:
    """Raise UserError if ``activate`` would refuse these adapters."""
    require_loaded(target, strengths)
    for model in components(target).values():
        activation.active_adapters(model, strengths_on(model, strengths), fusion)


def strengths_on(model: nn.Module, strengths: Mapping[str, float]) -> dict[str, float]:
    """Return the strengths of those adapters that the model has."""
    names = attachment.adapter_names(model)
    return {name: strength for name, strength in strengths.items() if name in names}


@contextlib.contextmanager
def disabled(target: Target) -> Iterator[None]:
    """Context manager within which no adapter is active: the base model alone, also while adapters are merged."""
    merged = is_merged(target)
    unmerge(target)
    previous = [
        (model, (attachment.state_of(model) or AdapterState()).selection) for model in components(target).values()
    ]
    activate(target, {})
    try:
        yield
    finally:
        for model, selection in previous:
            activation.activate(model, *selection)
        if merged:
            merge(target)


@contextlib.contextmanager
def frozen(target: Target) -> Iterator[None]:
    """Context manager for inference with adapters that don't change within the block (see ``activation.frozen``).

    Images of ``generate`` are generated so. Use it around calls of the pipeline itself.
    """
    with contextlib.ExitStack() as stack:
        for model in components(target).values():
            stack.enter_context(activation.frozen(model))
        yield


def merge(target: Target) -> None:
    """Merge the active adapters into the weights of all components, so that they cost nothing at inference."""
    with lock_of(target):
        for model in components(target).values():
            merging.merge(model)


def unmerge(target: Target) -> None:
    """Restore the weights that ``merge`` replaced, bit for bit."""
    with lock_of(target):
        for model in components(target).values():
            merging.unmerge(model)


def is_merged(target: Target) -> bool:
    """Return whether adapters are merged into the weights."""
    return any(state.merged for state in _states(target))


def _states(target: Target) -> list[AdapterState]:
    """Return the adapter states of the components that have adapters."""
    states = (attachment.state_of(model) for model in components(target).values())
    return [state for state in states if state]


def status(target: Target) -> str:
    """Return a table of the adapters: component, name, method, rank, layers, parameters, strength and subject."""
    rows = [("component", "adapter", "method", "rank", "layers", "parameters", "strength", "subject")]
    for component, model in components(target).items():
        state = attachment.state_of(model)
        for name in attachment.adapter_names(model):
            layers = attachment.adapter_layers(model, name)
            ranks = sorted({adapter.config.rank for adapter in layers.values()})
            strength = dict(state.active).get(name) if state else None
            shown = "inactive" if strength is None else f"{strength:g}{', merged' if state and state.merged else ''}"
            count = sum(p.numel() for adapter in layers.values() for p in adapter.parameters())
            method = next(iter(layers.values())).method
            rank = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]}–{ranks[-1]}"
            rows.append(
                (component, name, method, rank, f"{len(layers)}", f"{count:,}", shown, subject_of(target, name))
            )
    if len(rows) == 1:
        return "no adapters"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def print_trainable_parameters(target: Target) -> None:
    """Print the number of trainable parameters, of all parameters, and their ratio, as PEFT does."""
    parameters = [parameter for model in components(target).values() for parameter in model.parameters()]
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in parameters)
    print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}")  # noqa: T201
