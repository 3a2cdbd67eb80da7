"""Fingerprints: the probes of a base model's weights, and the distance between a recorded one and a model's own."""

import math
import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hra_diffusion.adapters import attachment
from hra_diffusion.adapters.layer import original_weight
from hra_diffusion.adapters.linear_map import offloaded_weights
from hra_diffusion.adapters.probe import probe
from hra_diffusion.adapters.quantization import Quantised
from hra_diffusion.adapters.targets import target_layer

Fingerprint = dict[str, dict[str, float]]
"""Component -> layer path -> probe of the frozen weight."""

TOLERANCE = 5e-3
"""Distance above which the weights differ by more than rounding to bfloat16 (about 1e-3)."""

_probes: "weakref.WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], float]]" = weakref.WeakKeyDictionary()


def layer_probe(layer: nn.Module) -> float:
    """The probe of a layer's weight in the base model, also while adapters are merged into it or it is quantised.

    Cached until the weight changes: probing a large base model takes longer than loading an adapter.
    """
    if isinstance(layer, Quantised):
        return layer.probe
    with offloaded_weights([layer]):
        return _cached_probe(layer, original_weight(layer))


def _cached_probe(layer: nn.Module, weight: Tensor) -> float:
    key = (weight.dtype, weight.device, _version_key(weight))
    if layer not in _probes or _probes[layer][0] != key:
        _probes[layer] = key, probe(weight)
    return _probes[layer][1]


def adapter_fingerprint(components: Mapping[str, nn.Module], name: str) -> Fingerprint:
    """The probes of all weights that the adapter ``name`` adapts."""
    return {
        component: {path: layer_probe(target_layer(components[component], path)) for path in layers}
        for component, layers in attachment.layers_by_component(components, name).items()
    }


def distance(recorded: Mapping[str, Mapping[str, float]], components: Mapping[str, nn.Module]) -> float:
    """RMS distance between a recorded fingerprint and the same layers of these components."""
    differences = [
        _difference(probe, layer_probe(target_layer(components[component], path)))
        for component, probes in recorded.items()
        for path, probe in probes.items()
    ]
    return (sum(difference**2 for difference in differences) / max(1, len(differences))) ** 0.5


def _difference(probe: float, other: float) -> float:
    """The difference of two probes, which are NaN for weights of zeros."""
    zeros = math.isnan(probe) + math.isnan(other)
    return probe - other if not zeros else math.inf if zeros == 1 else 0.0


def _version_key(tensor: Tensor) -> tuple[int, int]:
    """A key that changes when the tensor is written to, except in inference mode."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
