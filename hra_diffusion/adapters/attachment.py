"""Put adapters on a model and take them off: any torch model with linear (or conv) layers.

The model stays itself: layers keep their class's behaviour, their weights and the names of these; ``detach`` leaves no
trace.
"""

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from hra_diffusion.adapters import methods as _methods  # noqa: F401  (registers the methods)
from hra_diffusion.adapters import registry
from hra_diffusion.adapters.layer import AdaptedLayer, AdapterState, as_matrix, key, unsupported, unwrap, wrap
from hra_diffusion.adapters.parts import Rotation, precompute_factors
from hra_diffusion.adapters.quantization import Quantised
from hra_diffusion.adapters.registry import MethodConfig
from hra_diffusion.errors import UserError
from hra_diffusion.files import validated_name

_ATTENTION = r"to_q|to_k|to_v|to_out\.0|q_proj|k_proj|v_proj|out_proj|o_proj"
# a UNet that pools its caption into the time embedding does so by an attention of its own, which is not its layers'
_ANYWHERE = r"(?!add_embedding\.)(.*\.)?"
TARGETS = {
    "attention": rf"{_ANYWHERE}({_ATTENTION})",
    "attention+feed-forward": rf"{_ANYWHERE}({_ATTENTION}"
    r"|ff\.net\.0\.proj|ff\.net\.2|mlp\.fc1|mlp\.fc2|gate_proj|up_proj|down_proj)",
    "attention+conv": rf"{_ANYWHERE}({_ATTENTION}|conv1|conv2|conv_shortcut|proj_in|proj_out)",
}
"""Named sets of layers to adapt, as patterns a module's whole path must match. Attention is what the papers adapt."""


def find_targets(model: nn.Module, targets: str = "attention") -> list[str]:
    """Paths of the layers to adapt: ``targets`` names a set in ``TARGETS`` or is a pattern for the whole path.

    Raises ValueError if nothing matches, or if what matches is no layer an adapter can live on.
    """
    try:
        pattern = re.compile(TARGETS.get(targets, targets))
    except re.error as error:
        raise UserError(
            f"the target {targets!r} is no regular expression ({error}); '.*to_q' is all layers whose path ends so"
        ) from None
    leaves = {path: module for path, module in _plain_modules(model) if not _has_children(module)}
    found = [path for path in leaves if pattern.fullmatch(path)]
    if not found:
        usable = [path for path, module in leaves.items() if not unsupported(module)]
        raise UserError(
            f"no layer of {type(model).__name__} matches the target {targets!r}; "
            f"it names one of {', '.join(TARGETS)} or is a regular expression for paths like {', '.join(usable[:3])}"
        )
    for path in found:
        if reason := unsupported(leaves[path]):
            raise UserError(f"target {targets!r} matches {path}: {reason}")
    return found


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
    """Add a new adapter to the model and make it the active one; the model's own parameters are frozen.

    ``targets``: a set in ``TARGETS``, a pattern, or a list of layer paths. ``seed`` decides the starting values.
    ``ranks``: the layers (by path) whose rank is another than the options'.
    Adapter parameters are float32, on each layer's device. Returns the adapted layers' paths.
    Raises ValueError for an unknown method, a wrong option, a rank no layer can hold, a name in use, a model whose
    weights are offloaded already.
    """
    chosen, name = registry.get_method(method), validated_name(name)
    configs = planned(model, method, options, name=name, targets=targets, ranks=ranks)
    routing = state_of(model) or AdapterState()
    freeze(model)
    generator = torch.Generator().manual_seed(seed)
    routing.names.append(name)
    for path, config in configs.items():
        layer = model.get_submodule(path)
        d_out, d_in = as_matrix(layer).shape
        adapter = chosen.build(config, d_in, d_out, generator)
        adapter.method, adapter.config = chosen.name, config  # type: ignore[assignment]
        wrap(layer, routing).add(name, adapter.to(layer.weight.device))  # type: ignore[arg-type]
    _prepare(model, name, routing)
    activate(model, {name: 1.0})
    return list(configs)


def planned(
    model: nn.Module,
    method: str = "hra",
    options: Mapping | MethodConfig | None = None,
    *,
    name: str = "default",
    targets: str | Sequence[str] = "attention",
    ranks: Mapping[str, int] | None = None,
) -> dict[str, MethodConfig]:
    """What ``attach`` would put on which layer, by path; the model stays as it is. Raises what ``attach`` raises."""
    config = registry.get_method(method).parse(cast(dict, options or {}))
    name = validated_name(name)
    if (routing := state_of(model)) and routing.merged:
        raise UserError("adapters are merged into the weights; unmerge them first")
    if name in adapter_names(model):
        raise UserError(f"an adapter named {name!r} is on this model already; detach it or take another name")
    paths = find_targets(model, targets) if isinstance(targets, str) else targets
    configs = {path: config.model_copy(update={"rank": (ranks or {}).get(path, config.rank)}) for path in paths}
    for path, own in configs.items():
        layer = _layer(model, path)
        if own.rank > min(as_matrix(layer).shape):
            raise UserError(f"rank {own.rank} is too large for {path}, a {_shape(layer)} layer; use a smaller rank")
    return configs


def _prepare(model: nn.Module, name: str, routing: AdapterState) -> None:
    """Have the adapter's rotations, if it is made of them, worked out together before each forward pass."""
    modules = (module for layer in adapter_layers(model, name).values() for module in layer.modules())
    if rotations := [module for module in modules if isinstance(module, Rotation)]:
        before = functools.partial(_before_forward, rotations, name, routing)
        routing.hooks[name] = model.register_forward_pre_hook(before)


def _before_forward(rotations: Sequence[Rotation], name: str, routing: AdapterState, *_: object) -> None:
    if torch.is_grad_enabled() and (name, 1.0) in routing.mix and not routing.merged:
        precompute_factors(rotations)


def detach(model: nn.Module, name: str | None = None) -> None:
    """Remove one adapter, or all of them. With the last one the model is exactly what it was before ``attach``."""
    for gone in adapter_names(model) if name is None else [name]:
        _require(model, gone)
        routing = cast(AdapterState, state_of(model))
        if routing.merged:
            unmerge(model)
        routing.mix = tuple(entry for entry in routing.mix if entry[0] != gone)
        routing.names.remove(gone)
        if hook := routing.hooks.pop(gone, None):
            hook.remove()
        for _, layer in adapted_layers(model):
            layer.remove(gone)
            if not layer.adapters:
                unwrap(layer)
    if not any(True for _ in adapted_layers(model)):
        _unfreeze(model)


def activate(model: nn.Module, strengths: Mapping[str, float]) -> None:
    """Apply these adapters, at these strengths and in this order, from now on; an empty mapping is the base.

    1 is the adapter as trained, 0 the base; orthogonal methods stay orthogonal in between (a rotation by a part of
    the angle). Raises ValueError for a name that is not there, and while adapters are merged.
    """
    for name in strengths:
        _require(model, name)
    routing = state_of(model)
    if routing is None:
        return
    if routing.merged:
        raise UserError("adapters are merged into the weights; unmerge them first")
    routing.mix = tuple(strengths.items())


@contextlib.contextmanager
def batch_adapters(model: nn.Module, groups: Sequence[tuple[Mapping[str, float], int]]) -> Iterator[None]:
    """Within the block, contiguous groups of each batch have their own adapters: ``(strengths, count)`` each.

    An empty mapping is the base. A batch may be a multiple of the groups' sum; the pattern then repeats.
    """
    routing = state_of(model)
    for name in {name for strengths, _ in groups for name in strengths}:
        _require(model, name)
    if routing is None:
        yield
        return
    if routing.merged:
        raise UserError("adapters are merged into the weights; unmerge them first")
    before = routing.groups
    routing.groups = tuple((tuple(strengths.items()), count) for strengths, count in groups)
    try:
        yield
    finally:
        routing.groups = before


def merge(model: nn.Module) -> None:
    """Write the active adapters into the weights: no cost at inference. ``unmerge`` brings back the very bits.

    Raises UserError where the weights are stored in fewer bits, which have no room for it.
    """
    routing = state_of(model)
    if routing is None or routing.merged:
        return
    if any(isinstance(layer, Quantised) for _, layer in adapted_layers(model)):
        raise UserError("the base's weights are quantised; load the base in full precision to merge into it")
    for _, layer in adapted_layers(model):
        weight = cast(nn.Parameter, layer.weight)
        if layer.active(routing.mix):
            merged = layer.adapted_weight(routing.mix).detach()
            layer.__dict__["unmerged_weight"] = weight.data
            weight.data = merged
    routing.merged = True


def unmerge(model: nn.Module) -> None:
    """Undo ``merge``: the weights are the original ones, bit for bit (unless the model was cast meanwhile)."""
    routing = state_of(model)
    if routing is None or not routing.merged:
        return
    for _, layer in adapted_layers(model):
        if (original := layer.__dict__.pop("unmerged_weight", None)) is not None:
            weight = cast(nn.Parameter, layer.weight)
            weight.data = original.to(weight)
    routing.merged = False


@contextlib.contextmanager
def temporarily_merged(model: nn.Module, strengths: Mapping[str, float]) -> Iterator[None]:
    """Within the block the model is a plain one, without a trace of adapters, with ``strengths`` in its weights."""
    routing = state_of(model)
    if routing is None:
        yield
        return
    before = routing.mix
    off: list[tuple[AdaptedLayer, nn.ModuleDict]] = []
    try:
        activate(model, strengths)
        merge(model)
        off = [(layer, layer.adapters) for _, layer in adapted_layers(model)]
        for layer, _ in off:
            unwrap(layer)
        yield
    finally:
        for layer, adapters in off:
            wrap(layer, routing).adapters = adapters
        unmerge(model)
        activate(model, dict(before))


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLayer]]:
    """The model's layers that hold adapters, with their paths."""
    return ((path, module) for path, module in list(model.named_modules()) if isinstance(module, AdaptedLayer))


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters on the model, in the order they came."""
    routing = state_of(model)
    return list(routing.names) if routing else []


def adapter_layers(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """The modules of one adapter by the path of the layer they live on. Raises ValueError for an unknown name."""
    _require(model, name)
    return {path: layer.adapters[key(name)] for path, layer in adapted_layers(model) if key(name) in layer.adapters}


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The trainable parameters of one adapter as ``{layer path}.{parameter}``."""
    return {
        f"{path}.{parameter_name}": parameter
        for path, module in adapter_layers(model, name).items()
        for parameter_name, parameter in module.named_parameters()
    }


def penalty(model: nn.Module, name: str) -> Tensor | None:
    """The method's regulariser for this adapter, to be added to the loss; None for a method that has none."""
    layers = list(adapter_layers(model, name).values())
    method = registry.get_method(cast(str, layers[0].method))
    return method.penalty(cast(MethodConfig, layers[0].config), layers) if method.penalty else None


def state_of(model: nn.Module) -> AdapterState | None:
    """The routing its hosts share, or None for a model without adapters."""
    return next((module.routing for module in model.modules() if isinstance(module, AdaptedLayer)), None)


def freeze(model: nn.Module) -> None:
    """Freeze the model's own parameters, remembering which were trainable."""
    for _, module in _plain_modules(model):
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                parameter.requires_grad_(False)
                parameter.was_trainable = True  # type: ignore[attr-defined]


def _unfreeze(model: nn.Module) -> None:
    for parameter in model.parameters():
        if hasattr(parameter, "was_trainable"):
            del parameter.was_trainable  # type: ignore[attr-defined]
            parameter.requires_grad_(True)


def _plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The model's modules without those that belong to adapters."""
    return ((path, module) for path, module in model.named_modules() if "adapters.@" not in path)


def _has_children(module: nn.Module) -> bool:
    return not isinstance(module, AdaptedLayer) and any(True for _ in module.children())


def _layer(model: nn.Module, path: str) -> nn.Module:
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        raise UserError(f"{type(model).__name__} has no layer {path}") from None
    if reason := unsupported(layer):
        raise UserError(f"{path}: {reason}")
    if "_hf_hook" in vars(layer):  # its forward pass is fixed by the hook: an adapter would have no effect
        raise UserError(
            f"{path} is offloaded already; put adapters on first, then offload "
            "(pipe.remove_all_hooks() brings the weights back)"
        )
    return layer


def _shape(layer: nn.Module) -> str:
    d_out, d_in = as_matrix(layer).shape
    return f"{d_in} to {d_out}"


def _require(model: nn.Module, name: str) -> None:
    if name not in adapter_names(model):
        known = ", ".join(adapter_names(model)) or "none"
        raise UserError(f"no adapter named {name!r} on this {type(model).__name__}; adapters: {known}")
