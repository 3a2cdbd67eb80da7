"""Load an adapter file onto the components of a pipeline.

Every layer, shape and version is checked; if a check fails, the components are left unchanged.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hra_diffusion.adapters import adapter_file, attachment, fingerprint, registry
from hra_diffusion.adapters.activation import activate
from hra_diffusion.adapters.adapter_file import AdapterFileError, AdapterInfo
from hra_diffusion.adapters.linear_map import matrix_shape
from hra_diffusion.adapters.state import AdapterState
from hra_diffusion.adapters.targets import base_modules, target_layer
from hra_diffusion.adapters.token_embeddings import PARAMETER, vectors_shape
from hra_diffusion.errors import Note


def load(path: Path, components: Mapping[str, nn.Module], name: str | None = None) -> AdapterInfo:
    """Attach the adapter in ``path`` to the components it was trained on, under ``name`` (its own by default).

    Raises AdapterFileError, with the components unchanged, for a damaged file, a newer format or another base model
    (missing layers, wrong shapes). Warns if the base model has the right shapes but other weights.
    """
    info, tensors = read_for(path, components, name)
    known = info.model_dump(exclude={"name", "method", "options", "ranks", "embeddings"})
    previous = {model: (attachment.state_of(model) or AdapterState()).selection for model in components.values()}
    try:
        for component, probes in info.fingerprint.items():
            attachment.attach(
                components[component],
                info.method,
                info.options,
                name=info.name,
                targets=list(probes),
                ranks=info.ranks.get(component),
                start=False,
            )
        for component, tokens in info.embeddings.items():
            vectors = tensors[f"{component}.{PARAMETER}"]
            attachment.attach_vectors(components[component], info.name, tokens, vectors)
        for component in info.fingerprint.keys() | info.embeddings.keys():
            attachment.remember(components[component], info.name, known)
        with torch.no_grad():
            for key, parameter in adapter_file.parameters(components, info.name).items():
                parameter.copy_(tensors[key])
    except ValueError as error:
        unload(components, info.name)
        for model, selection in previous.items():
            activate(model, *selection)
        raise AdapterFileError(f"{path}: {error}") from None
    _warn_of_other_weights(path, info, components)
    return info


def read_for(
    path: Path, components: Mapping[str, nn.Module], name: str | None = None
) -> tuple[AdapterInfo, dict[str, Tensor]]:
    """Read an adapter file and check that it fits the components, which don't change. Raises as ``load`` does."""
    info, tensors = adapter_file.read(path)
    info = info.model_copy(update={"name": name or info.name})
    _check_layers(path, info, components)
    _check_tensors(path, info, tensors, components)
    return info, tensors


def unload(components: Mapping[str, nn.Module], name: str) -> None:
    """Detach the adapter from all components that have it."""
    for model in components.values():
        if name in attachment.adapter_names(model):
            attachment.detach(model, name)


def _check_layers(path: Path, info: AdapterInfo, components: Mapping[str, nn.Module]) -> None:
    for component in [*info.fingerprint, *info.embeddings]:
        if component not in components:
            raise AdapterFileError(f"{path} is for another base ({info.base}): this one has no {component}")
    for component, probes in info.fingerprint.items():
        if (state := attachment.state_of(components[component])) and state.merged:
            raise AdapterFileError("adapters are merged into the weights; unmerge them first")
        if info.name in attachment.adapter_names(components[component]):
            raise AdapterFileError(
                f"an adapter named {info.name!r} is loaded already; unload it or load this one under another name"
            )
        known = {layer for layer, _ in base_modules(components[component])}
        if missing := [layer for layer in probes if layer not in known]:
            more = f" and {len(missing) - 1} more layers" if len(missing) > 1 else ""
            raise AdapterFileError(
                f"{path} is for another base ({info.base}): this one has no {component}.{missing[0]}{more}"
            )


def _check_tensors(
    path: Path, info: AdapterInfo, tensors: Mapping[str, Tensor], components: Mapping[str, nn.Module]
) -> None:
    """Raise AdapterFileError unless the tensors are those of the adapter on these models, before it is built."""
    try:
        shapes = _parameter_shapes(info, components)
    except ValueError as error:
        raise AdapterFileError(f"{path}: {error}") from None
    if missing := sorted(set(shapes) - set(tensors)):
        raise AdapterFileError(
            f"{path} is incomplete: {missing[0]} is missing; copy it again or use another checkpoint"
        )
    if extra := sorted(set(tensors) - set(shapes)):
        raise AdapterFileError(f"{path} contains {extra[0]}, which belongs to none of its layers")
    for key, shape in shapes.items():
        if tensors[key].shape != shape:
            raise AdapterFileError(
                f"{path} is for another base ({info.base}): {key} is {tuple(tensors[key].shape)} in the file, "
                f"{tuple(shape)} here"
            )


def _parameter_shapes(info: AdapterInfo, components: Mapping[str, nn.Module]) -> dict[str, torch.Size]:
    method, shapes = registry.get_method(info.method), {}
    for component, probes in info.fingerprint.items():
        model, ranks = components[component], info.ranks.get(component)
        configs = attachment.plan_attachment(
            model, info.method, info.options, name=info.name, targets=list(probes), ranks=ranks
        )
        for layer, config in configs.items():
            d_out, d_in = matrix_shape(target_layer(model, layer))
            shapes |= {f"{component}.{layer}.{key}": size for key, size in method.shapes(config, d_in, d_out).items()}
    for component, tokens in info.embeddings.items():
        shapes[f"{component}.{PARAMETER}"] = vectors_shape(components[component], tokens)
    return shapes


def _warn_of_other_weights(path: Path, info: AdapterInfo, components: Mapping[str, nn.Module]) -> None:
    distance = fingerprint.distance(info.fingerprint, components)
    if distance > fingerprint.TOLERANCE:
        warnings.warn(
            f"{path} was trained on other weights of the same shape ({info.base}; fingerprints differ by "
            f"{distance:.2g}): expect another result than on its own base",
            Note,
            stacklevel=3,
        )
