"""Fingerprints: the probes of a base model's weights, and the distance between a recorded one and a model's own."""

import weakref
from collections.abc import Mapping
from typing import Any

from torch import nn

from hra_diffusion.adapters import attachment
from hra_diffusion.adapters.cache import version_key
from hra_diffusion.adapters.layer import original_weight
from hra_diffusion.adapters.probe import probe
from hra_diffusion.adapters.quantization import Quantised

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
    weight = original_weight(layer)
    key = (weight.dtype, weight.device, version_key(weight))
    if layer not in _probes or _probes[layer][0] != key:
        _probes[layer] = key, probe(weight)
    return _probes[layer][1]


def adapter_fingerprint(components: Mapping[str, nn.Module], name: str) -> Fingerprint:
    """The probes of all weights that the adapter ``name`` adapts."""
    return {
        component: {path: layer_probe(model.get_submodule(path)) for path in attachment.adapter_layers(model, name)}
        for component, model in components.items()
        if name in attachment.adapter_names(model)
    }


def distance(recorded: Mapping[str, Mapping[str, float]], components: Mapping[str, nn.Module]) -> float:
    """RMS distance between a recorded fingerprint and the same layers of these components."""
    differences = [
        probe - layer_probe(components[component].get_submodule(path))
        for component, probes in recorded.items()
        for path, probe in probes.items()
    ]
    return (sum(difference**2 for difference in differences) / max(1, len(differences))) ** 0.5
