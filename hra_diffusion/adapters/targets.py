"""Find the layers of a model to adapt."""

import re
from collections.abc import Iterator

from torch import nn

from hra_diffusion.adapters.layer import LayerAdapters
from hra_diffusion.adapters.linear_map import unsupported_reason
from hra_diffusion.adapters.token_embeddings import EmbeddingAdapters
from hra_diffusion.errors import UserError, shown
from hra_diffusion.patterns import compile_pattern

_ATTENTION = (
    r"to_q|to_k|to_v|to_out(\.0)?|q_proj|k_proj|v_proj|out_proj|o_proj"
    # of the text in a transformer for both, and FLUX's projection to queries, keys, values and feed-forward at once
    r"|add_q_proj|add_k_proj|add_v_proj|to_add_out|to_qkv_mlp_proj"
)
# an attention in add_embedding pools the prompt for the time embedding; it belongs to none of the UNet's blocks
_ANYWHERE = r"(?!add_embedding\.)(.*\.)?"
TARGETS = {
    "attention": rf"{_ANYWHERE}({_ATTENTION})",
    "attention+feed-forward": rf"{_ANYWHERE}({_ATTENTION}"
    r"|ff(_context)?\.(net\.0\.proj|net\.2|linear_in|linear_out)|mlp\.fc1|mlp\.fc2|gate_proj|up_proj|down_proj)",
    "attention+conv": rf"{_ANYWHERE}({_ATTENTION}|conv1|conv2|conv_shortcut|proj_in|proj_out)",
}
"""Named sets of layers as regular expressions for the whole path. The papers adapt attention."""


def find_targets(model: nn.Module, targets: str = "attention", exclude: str = "") -> list[str]:
    """Paths of the layers to adapt.

    Args:
        targets: A key of ``TARGETS`` or a regular expression for the whole path (see ``patterns``).
        exclude: A regular expression for the whole path of layers to leave out; "" leaves out none.

    Raises UserError if nothing matches or if a matching layer can't be adapted.
    """
    pattern = re.compile(TARGETS[targets]) if targets in TARGETS else compile_pattern(targets)
    excluded = compile_pattern(exclude)
    leaves = {path: module for path, module in base_modules(model) if not _has_children(module)}
    matching = [path for path in leaves if pattern.fullmatch(path)]
    if not matching:
        usable = [path for path, module in leaves.items() if not unsupported_reason(module)]
        raise UserError(
            f"no layer of {type(model).__name__} matches the target {shown(targets)}; "
            f"use one of {', '.join(TARGETS)} or a regular expression for paths like {', '.join(usable[:3])}"
        )
    found = [path for path in matching if not excluded.fullmatch(path)]
    if exclude and len(found) in (0, len(matching)):
        which = "all layers" if not found else "no layer"
        raise UserError(
            f"exclude={shown(exclude)} matches {which} of the target {shown(targets)}, such as {matching[0]}"
        )
    for path in found:
        if reason := unsupported_reason(leaves[path]):
            raise UserError(f"target {shown(targets)} matches {path}: {reason}")
    return found


def target_layer(model: nn.Module, path: str) -> nn.Module:
    """The layer at ``path``. Raises UserError if it does not exist or can't be adapted."""
    layer = module_at(model, path)
    if layer is None:
        raise UserError(f"{type(model).__name__} has no layer {path}")
    if reason := unsupported_reason(layer):
        raise UserError(f"{path}: {reason}")
    return layer


def module_at(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a path of ``base_modules``, or None."""
    module: nn.Module | None = model
    for part in path.split("."):
        module = _unwrapped(module)._modules.get(part) if module is not None else None
    return None if module is None else _unwrapped(module)


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The model's own modules with their paths, shared ones once, without adapters.

    Layers that PEFT wraps keep the path that they had without it.
    """
    return _base_modules("", model, set())


def _base_modules(path: str, module: nn.Module, seen: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    module = _unwrapped(module)
    if module in seen or isinstance(module, LayerAdapters | EmbeddingAdapters):
        return
    seen.add(module)
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _base_modules(f"{path}.{name}" if path else name, child, seen)


def _unwrapped(module: nn.Module) -> nn.Module:
    """The layer that a PEFT tuner wraps, or the module itself."""
    while isinstance(base := module._modules.get("base_layer"), nn.Module):
        module = base
    return module


def _has_children(module: nn.Module) -> bool:
    return any(not isinstance(child, LayerAdapters | EmbeddingAdapters) for child in module.children())
