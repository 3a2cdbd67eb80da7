"""Merge the active adapters into a model's weights, and restore the original weights."""

import contextlib
from collections.abc import Iterator, Mapping

from torch import nn

from hra_diffusion.adapters.activation import activate
from hra_diffusion.adapters.attachment import adapted_layers, state_of
from hra_diffusion.adapters.layer import AdaptedLayer, unwrap, wrap
from hra_diffusion.adapters.quantization import Quantised
from hra_diffusion.errors import UserError


def merge(model: nn.Module) -> None:
    """Merge the active adapters into the weights, so that they cost nothing at inference.

    The original weights are kept for ``unmerge``. Raises UserError if the weights are quantised.
    """
    state = state_of(model)
    if state is None or state.merged:
        return
    if any(isinstance(layer, Quantised) for _, layer in adapted_layers(model)):
        raise UserError("the base's weights are quantised; load the base in full precision to merge into it")
    for _, layer in adapted_layers(model):
        layer.merge(state.active)
    state.merged = True


def unmerge(model: nn.Module) -> None:
    """Restore the original weights, bit for bit unless the model was cast while merged."""
    state = state_of(model)
    if state is None or not state.merged:
        return
    for _, layer in adapted_layers(model):
        layer.unmerge()
    state.merged = False


@contextlib.contextmanager
def temporarily_merged(model: nn.Module, strengths: Mapping[str, float]) -> Iterator[None]:
    """Context manager that merges adapters at these strengths and unwraps the layers: a plain model in the block."""
    state = state_of(model)
    if state is None:
        yield
        return
    previous = state.active
    unwrapped: list[tuple[AdaptedLayer, nn.ModuleDict]] = []
    try:
        activate(model, strengths)
        merge(model)
        unwrapped = [(layer, layer.adapters) for _, layer in adapted_layers(model)]
        for layer, _ in unwrapped:
            unwrap(layer)
        yield
    finally:
        for layer, adapters in unwrapped:
            wrap(layer, state).adapters = adapters
        unmerge(model)
        activate(model, dict(previous))
