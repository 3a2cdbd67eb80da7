"""Attach adapters to any torch model with linear or convolution layers, look them up, and detach them.

The model's layers keep their weights and the weights' names. ``detach`` restores the model completely.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from hra_diffusion.adapters import methods as _methods  # noqa: F401  (registers the methods)
from hra_diffusion.adapters import registry
from hra_diffusion.adapters.layer import AdaptedLayer, adapter_key, unwrap, wrap
from hra_diffusion.adapters.linear_map import as_matrix
from hra_diffusion.adapters.registry import MethodConfig
from hra_diffusion.adapters.rotation import Rotation, precompute_factors
from hra_diffusion.adapters.state import AdapterState
from hra_diffusion.adapters.targets import base_modules, find_targets, target_layer
from hra_diffusion.errors import UserError
from hra_diffusion.names import validated_name


def attach(
    model: nn.Module,
    method: str = "hra",
    options: Mapping | MethodConfig | None = None,
    *,
    name: str = "default",
    targets: str | Sequence[str] = "attention",
    seed: int = 0,
    ranks: Mapping[str, int] | None = None,
) -> list[str]:
    """Add a new adapter to the model, make it the only active one, and freeze the model's own parameters.

    Adapter parameters are float32, on the device of their layer.

    Args:
        targets: A key of ``TARGETS``, a regular expression for layer paths, or a list of layer paths.
        seed: Seed of the adapter's initial values.
        ranks: Ranks by layer path, where they differ from the rank in ``options``.

    Returns the paths of the adapted layers. Raises UserError for an unknown method, an invalid option, a rank too large
    for a layer, a name in use, or a model that is offloaded already.
    """
    chosen, name = registry.get_method(method), validated_name(name)
    configs = plan_attachment(model, method, options, name=name, targets=targets, ranks=ranks)
    state = state_of(model) or AdapterState()
    freeze(model)
    generator = torch.Generator().manual_seed(seed)
    state.names.append(name)
    for path, config in configs.items():
        layer = model.get_submodule(path)
        d_out, d_in = as_matrix(layer).shape
        adapter = chosen.build(config, d_in, d_out, generator)
        adapter.method, adapter.config = chosen.name, config  # type: ignore[assignment]
        wrap(layer, state).add_adapter(name, adapter.to(layer.weight.device))  # type: ignore[arg-type]
    _register_precomputation(model, name, state)
    state.active = ((name, 1.0),)
    return list(configs)


def plan_attachment(
    model: nn.Module,
    method: str = "hra",
    options: Mapping | MethodConfig | None = None,
    *,
    name: str = "default",
    targets: str | Sequence[str] = "attention",
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
    paths = find_targets(model, targets) if isinstance(targets, str) else targets
    configs = {path: config.model_copy(update={"rank": (ranks or {}).get(path, config.rank)}) for path in paths}
    for path, layer_config in configs.items():
        d_out, d_in = as_matrix(target_layer(model, path)).shape
        if layer_config.rank > min(d_out, d_in):
            raise UserError(
                f"rank {layer_config.rank} is too large for {path}, a {d_in} to {d_out} layer; use a smaller rank"
            )
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
        if hook := state.hooks.pop(removed, None):
            hook.remove()
        for _, layer in adapted_layers(model):
            layer.unmerge()
            layer.remove_adapter(removed)
            if not layer.adapters:
                unwrap(layer)
    if not any(True for _ in adapted_layers(model)):
        _unfreeze(model)


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLayer]]:
    """The model's adapted layers with their paths."""
    return ((path, module) for path, module in list(model.named_modules()) if isinstance(module, AdaptedLayer))


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the attached adapters, in the order of attachment."""
    state = state_of(model)
    return list(state.names) if state else []


def adapter_layers(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """The modules of one adapter by the path of the layer that they adapt. Raises UserError for an unknown name."""
    require_adapter(model, name)
    key = adapter_key(name)
    return {path: layer.adapters[key] for path, layer in adapted_layers(model) if key in layer.adapters}


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The trainable parameters of one adapter as ``{layer path}.{parameter}``."""
    return {
        f"{path}.{parameter_name}": parameter
        for path, module in adapter_layers(model, name).items()
        for parameter_name, parameter in module.named_parameters()
    }


def penalty(model: nn.Module, name: str) -> Tensor | None:
    """The regularisation term of the adapter's method, to be added to the loss, or None if it has none."""
    layers = list(adapter_layers(model, name).values())
    method = registry.get_method(cast(str, layers[0].method))
    return method.penalty(cast(MethodConfig, layers[0].config), layers) if method.penalty else None


def state_of(model: nn.Module) -> AdapterState | None:
    """The state shared by the model's adapted layers, or None for a model without adapters."""
    return next((module.adapter_state for module in model.modules() if isinstance(module, AdaptedLayer)), None)


def require_adapter(model: nn.Module, name: str) -> None:
    """Raise UserError if the model has no adapter of this name."""
    if name not in adapter_names(model):
        known = ", ".join(adapter_names(model)) or "none"
        raise UserError(f"no adapter named {name!r} on this {type(model).__name__}; adapters: {known}")


def freeze(model: nn.Module) -> None:
    """Freeze the model's own parameters. ``detach`` makes those trainable again that were."""
    for _, module in base_modules(model):
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                parameter.requires_grad_(False)
                parameter.was_trainable = True  # type: ignore[attr-defined]


def _unfreeze(model: nn.Module) -> None:
    for parameter in model.parameters():
        if hasattr(parameter, "was_trainable"):
            del parameter.was_trainable  # type: ignore[attr-defined]
            parameter.requires_grad_(True)


def _register_precomputation(model: nn.Module, name: str, state: AdapterState) -> None:
    """Compute the factors of the adapter's rotations, if it has any, together before each forward pass."""
    modules = (module for layer in adapter_layers(model, name).values() for module in layer.modules())
    if rotations := [module for module in modules if isinstance(module, Rotation)]:
        hook = functools.partial(_precompute_if_active, rotations, name, state)
        state.hooks[name] = model.register_forward_pre_hook(hook)


def _precompute_if_active(rotations: Sequence[Rotation], name: str, state: AdapterState, *_: object) -> None:
    if torch.is_grad_enabled() and (name, 1.0) in state.active and not state.merged:
        precompute_factors(rotations)
