"""Find the layers of a model to adapt."""

import re
from collections.abc import Iterator

from torch import nn

from hra_diffusion.adapters.layer import AdaptedLayer
from hra_diffusion.adapters.linear_map import unsupported_reason
from hra_diffusion.errors import UserError

_ATTENTION = r"to_q|to_k|to_v|to_out\.0|q_proj|k_proj|v_proj|out_proj|o_proj"
# an attention in add_embedding pools the prompt for the time embedding; it belongs to none of the UNet's blocks
_ANYWHERE = r"(?!add_embedding\.)(.*\.)?"
TARGETS = {
    "attention": rf"{_ANYWHERE}({_ATTENTION})",
    "attention+feed-forward": rf"{_ANYWHERE}({_ATTENTION}"
    r"|ff\.net\.0\.proj|ff\.net\.2|mlp\.fc1|mlp\.fc2|gate_proj|up_proj|down_proj)",
    "attention+conv": rf"{_ANYWHERE}({_ATTENTION}|conv1|conv2|conv_shortcut|proj_in|proj_out)",
}
"""Named sets of layers as regular expressions for the whole path. The papers adapt attention."""


def find_targets(model: nn.Module, targets: str = "attention") -> list[str]:
    """Paths of the layers to adapt. ``targets`` is a key of ``TARGETS`` or a regular expression for the whole path.

    Raises UserError if nothing matches or if a matching layer can't be adapted.
    """
    try:
        pattern = re.compile(TARGETS.get(targets, targets))
    except re.error as error:
        raise UserError(
            f"the target {targets!r} is not a valid regular expression ({error}); "
            "'.*to_q' matches all layers whose path ends in to_q"
        ) from None
    leaves = {path: module for path, module in base_modules(model) if not _has_children(module)}
    found = [path for path in leaves if pattern.fullmatch(path)]
    if not found:
        usable = [path for path, module in leaves.items() if not unsupported_reason(module)]
        raise UserError(
            f"no layer of {type(model).__name__} matches the target {targets!r}; "
            f"use one of {', '.join(TARGETS)} or a regular expression for paths like {', '.join(usable[:3])}"
        )
    for path in found:
        if reason := unsupported_reason(leaves[path]):
            raise UserError(f"target {targets!r} matches {path}: {reason}")
    return found


def target_layer(model: nn.Module, path: str) -> nn.Module:
    """The layer at ``path``. Raises UserError if it does not exist, can't be adapted or is offloaded."""
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        raise UserError(f"{type(model).__name__} has no layer {path}") from None
    if reason := unsupported_reason(layer):
        raise UserError(f"{path}: {reason}")
    if "_hf_hook" in vars(layer):  # the hook calls the class's forward as it was when the hook was added
        raise UserError(
            f"{path} is offloaded already; attach adapters first, then offload "
            "(pipe.remove_all_hooks() undoes the offloading)"
        )
    return layer


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The model's modules with their paths, without those of adapters."""
    return ((path, module) for path, module in model.named_modules() if "adapters.@" not in path)


def _has_children(module: nn.Module) -> bool:
    return not isinstance(module, AdaptedLayer) and any(True for _ in module.children())
