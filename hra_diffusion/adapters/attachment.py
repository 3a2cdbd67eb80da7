"""Attach adapters to any torch model with linear or convolution layers, look them up, and detach them.

The model's layers keep their class, their weights and the weights' names. ``detach`` restores the model completely.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from hra_diffusion.adapters import methods as _methods  # noqa: F401  (registers the methods)
from hra_diffusion.adapters import registry
from hra_diffusion.adapters.layer import adapters_of, adapters_on, add_adapter, remove_adapter, unmerge_layer
from hra_diffusion.adapters.linear_map import as_matrix, matrix_shape, offloaded_weights, storage_device
from hra_diffusion.adapters.model_hooks import ModelHooks, adapted_modules, hooks_of, refresh
from hra_diffusion.adapters.registry import Adapter, MethodConfig
from hra_diffusion.adapters.state import AdapterState
from hra_diffusion.adapters.targets import base_modules, find_targets, target_layer
from hra_diffusion.adapters.token_embeddings import (
    PARAMETER,
    Tokens,
    add_vectors,
    remove_vectors,
    vectors_of,
    vectors_on,
)
from hra_diffusion.errors import UserError
from hra_diffusion.names import validated_name


def attach(
    model: nn.Module,
    method: str = "hra",
    options: Mapping | MethodConfig | None = None,
    *,
    name: str = "default",
    targets: str | Sequence[str] = "attention",
    exclude: str = "",
    seed: int = 0,
    ranks: Mapping[str, int] | None = None,
    start: bool = True,
) -> list[str]:
    """Add a new adapter to the model, make it the only active one, and freeze the model's own parameters.

    Adapter parameters are float32, on the device of their layer. Layers may be patched, quantised or offloaded.

    Args:
        targets: A key of ``TARGETS``, a regular expression for layer paths, or a list of layer paths.
        exclude: A regular expression for the paths of layers that are not adapted.
        seed: Seed of the adapter's initial values.
        ranks: Ranks by layer path, where they differ from the rank in ``options``.
        start: Compute the initial values that depend on weights. They take time, and are not needed if loaded.

    Returns the paths of the adapted layers. Raises UserError for an unknown method, an invalid option, a rank too large
    for a layer, or a name in use.
    """
    chosen, name = registry.get_method(method), validated_name(name)
    configs = plan_attachment(model, method, options, name=name, targets=targets, exclude=exclude, ranks=ranks)
    state = state_of(model) or AdapterState()
    state.frozen_parameters |= freeze(model)
    generator = torch.Generator().manual_seed(seed)
    state.names.append(name)
    for path, config in configs.items():
        layer = target_layer(model, path)
        d_out, d_in = matrix_shape(layer)
        adapter = chosen.build(config, d_in, d_out, generator)
        adapter.method, adapter.config = chosen.name, config
        add_adapter(layer, state, name, adapter.to(storage_device(layer)))
        if start:
            with offloaded_weights([layer]):
                adapter.start_from(functools.partial(as_matrix, layer))
    state.version += 1
    if hooks := hooks_of(model):
        hooks.update(model)
    else:
        ModelHooks(state, model)
    state.active = ((name, 1.0),)
    refresh(model)
    return list(configs)


def attach_vectors(model: nn.Module, name: str, tokens: Tokens, vectors: Tensor) -> None:
    """Add trained embeddings (K, d) of an adapter's triggers to a text encoder, and make the adapter the active one.

    The adapter may have layers on the model already. Raises UserError if the vectors don't fit the model.
    """
    state = state_of(model) or AdapterState()
    add_vectors(model, state, name, tokens, vectors)
    state.frozen_parameters |= freeze(model)
    if name not in state.names:
        state.names.append(name)
        state.version += 1
        state.active = ((name, 1.0),)
        refresh(model)


def plan_attachment(
    model: nn.Module,
    method: str = "hra",
    options: Mapping | MethodConfig | None = None,
    *,
    name: str = "default",
    targets: str | Sequence[str] = "attention",
    exclude: str = "",
    ranks: Mapping[str, int] | None = None,
) -> dict[str, MethodConfig]:
    """The configuration that ``attach`` would use for each layer, by path. Does not change the model.

    Raises UserError as ``attach`` does.
    """
    config = registry.get_method(method).parse(cast(dict, options or {}))
    name = validated_name(name)
    if state := state_of(model):
        state.require_unmerged()
    if name in adapter_names(model):
        raise UserError(f"an adapter named {name!r} is on this model already; detach it or choose another name")
    paths = find_targets(model, targets, exclude) if isinstance(targets, str) else targets
    configs = {path: config.model_copy(update={"rank": (ranks or {}).get(path, config.rank)}) for path in paths}
    for path, layer_config in configs.items():
        d_out, d_in = matrix_shape(target_layer(model, path))
        if layer_config.rank > min(d_out, d_in):
            raise UserError(
                f"rank {layer_config.rank} is too large for {path}, a {d_in} to {d_out} layer; use a smaller rank"
            )
        if reason := layer_config.misfit(d_in, d_out):
            raise UserError(f"{path}: {reason}")
    return configs


def detach(model: nn.Module, name: str | None = None) -> None:
    """Remove one adapter, or all of them. Without adapters the model is exactly what it was before ``attach``.

    Merged adapters are unmerged first. Raises UserError for an unknown name.
    """
    for removed in adapter_names(model) if name is None else [name]:
        require_adapter(model, removed)
        state = cast(AdapterState, state_of(model))
        state.merged = False
        state.active = tuple(entry for entry in state.active if entry[0] != removed)
        state.names.remove(removed)
        state.facts.pop(removed, None)
        state.version += 1
        for layer in list(adapted_modules(model)):
            unmerge_layer(layer)
            remove_adapter(layer, removed)
        remove_vectors(model, removed)
        if state_of(model) is None:
            _unfreeze(model, state)
        if hooks := hooks_of(model):
            hooks.update(model) if state.names else hooks.remove()
        refresh(model)


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The model's adapted layers with their paths."""
    return ((path, module) for path, module in base_modules(model) if adapters_on(module) is not None)


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the attached adapters, in the order of attachment."""
    state = state_of(model)
    return list(state.names) if state else []


def adapter_layers(model: nn.Module, name: str) -> dict[str, Adapter]:
    """The modules of one adapter by the path of the layer that they adapt. Raises UserError for an unknown name."""
    require_adapter(model, name)
    found = {path: adapters_of(layer).get(name) for path, layer in adapted_layers(model)}
    return {path: adapter for path, adapter in found.items() if adapter is not None}


def layers_by_component(components: Mapping[str, nn.Module], name: str) -> dict[str, dict[str, Adapter]]:
    """``adapter_layers`` of each component that the adapter adapts; one may have its trained embeddings alone."""
    adapted = {key: model for key, model in components.items() if name in adapter_names(model)}
    return {key: layers for key, model in adapted.items() if (layers := adapter_layers(model, name))}


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The trainable parameters of one adapter as ``{layer path}.{parameter}``, and trained embeddings (K, d)."""
    found = {
        f"{path}.{parameter_name}": parameter
        for path, module in adapter_layers(model, name).items()
        for parameter_name, parameter in module.named_parameters()
    }
    return found | ({PARAMETER: vectors.vectors} if (vectors := vectors_of(model, name)) else {})


def penalty(model: nn.Module, name: str) -> Tensor | None:
    """The regularisation term of the adapter's method, to be added to the loss, or None if it has none."""
    if not (layers := list(adapter_layers(model, name).values())):
        return None
    method = registry.get_method(layers[0].method)
    return method.penalty(layers[0].config, layers) if method.penalty else None


def state_of(model: nn.Module) -> AdapterState | None:
    """The state shared by the model's adapted layers, or None for a model without adapters."""
    found = next((adapters_of(layer) for layer in adapted_modules(model)), None) or vectors_on(model)
    return found.state if found is not None else None


def remember(model: nn.Module, name: str, facts: Mapping[str, Any]) -> None:
    """Keep facts about an adapter on the model: fields of ``adapter_file.AdapterInfo``."""
    require_adapter(model, name)
    cast(AdapterState, state_of(model)).facts[name] = dict(facts)


def require_adapter(model: nn.Module, name: str) -> None:
    """Raise UserError if the model has no adapter of this name."""
    if name not in adapter_names(model):
        known = ", ".join(adapter_names(model)) or "none"
        raise UserError(f"no adapter named {name!r} on this {type(model).__name__}; adapters: {known}")


def freeze(model: nn.Module) -> set[str]:
    """Freeze the model's own parameters. Returns the paths of those that were trainable."""
    frozen = set()
    for path, parameter in _own_parameters(model):
        if parameter.requires_grad:
            parameter.requires_grad_(False)
            frozen.add(path)
    return frozen


def _unfreeze(model: nn.Module, state: AdapterState) -> None:
    for path, parameter in _own_parameters(model):
        if path in state.frozen_parameters:
            parameter.requires_grad_(True)


def _own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for path, module in base_modules(model):
        for name, parameter in module.named_parameters(recurse=False):
            yield f"{path}.{name}", parameter
