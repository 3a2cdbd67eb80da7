"""Merge the active adapters into a model's weights, and restore the original weights."""

import contextlib
from collections.abc import Iterator, Mapping

from torch import nn

from hra_diffusion.adapters.activation import activate
from hra_diffusion.adapters.attachment import adapted_layers, state_of
from hra_diffusion.adapters.layer import LayerAdapters, adapters_of, merge_layer, unmerge_layer
from hra_diffusion.adapters.linear_map import storage_of
from hra_diffusion.adapters.state import Fusion
from hra_diffusion.errors import UserError


def merge(model: nn.Module) -> None:
    """Merge the active adapters into the weights, so that they cost nothing at inference.

    The original weights are kept for ``unmerge``. Raises UserError if the weights are quantised or offloaded.
    """
    state = state_of(model)
    if state is None or state.merged:
        return
    layers = dict(adapted_layers(model))
    for path, layer in layers.items():
        if storage := storage_of(layer):
            raise UserError(
                "the base's weights are quantised; load the base in full precision to merge into it "
                f"({path}: {storage})"
            )
        if _is_offloaded(layer):
            raise UserError(f"{path} is offloaded; merge before the model is offloaded")
    for layer in layers.values():
        merge_layer(layer, state.active)
    state.merged = True


def unmerge(model: nn.Module) -> None:
    """Restore the original weights, bit for bit unless the model was cast while merged."""
    state = state_of(model)
    if state is None or not state.merged:
        return
    for _, layer in adapted_layers(model):
        unmerge_layer(layer)
    state.merged = False


@contextlib.contextmanager
def temporarily_merged(model: nn.Module, strengths: Mapping[str, float], fusion: Fusion = "compose") -> Iterator[None]:
    """Context manager that merges adapters at these strengths and removes them from the layers: a plain model.

    Adapters that are merged already are merged again after the block.
    """
    state = state_of(model)
    if state is None:
        yield
        return
    previous, merged = state.selection, state.merged
    removed: list[tuple[nn.Module, LayerAdapters]] = []
    try:
        unmerge(model)
        activate(model, strengths, fusion)
        merge(model)
        for _, layer in list(adapted_layers(model)):
            removed.append((layer, adapters_of(layer)))
            adapters_of(layer).remove_hooks()
            del layer.adapters
        yield
    finally:
        for layer, adapters in removed:
            layer.adapters = adapters
            adapters.attach_to(layer)
        unmerge(model)
        activate(model, *previous)
        if merged:
            merge(model)


def _is_offloaded(layer: nn.Module) -> bool:
    """Whether accelerate or diffusers keeps the layer's weight elsewhere between forward passes."""
    if getattr(layer.__dict__.get("_hf_hook"), "offload", False):
        return True
    hooks = getattr(layer, "_diffusers_hook", None)
    return hooks is not None and hooks.get_hook("group_offloading") is not None
