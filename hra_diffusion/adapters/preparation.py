"""Prepare the factors of all adapted layers together, once per forward pass of the model.

The parameters of many layers are stacked: a few large operations instead of hundreds of small ones, forward and
backward.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hra_diffusion.adapters.factors import LayerFactors, compose
from hra_diffusion.adapters.householder import own_precision
from hra_diffusion.adapters.linear_map import (
    PLAIN_DTYPES,
    as_matrix,
    compute_dtype,
    has_weight,
    matrix_shape,
    offloaded_weights,
    stored_weight,
)
from hra_diffusion.adapters.registry import Adapter, MethodConfig
from hra_diffusion.adapters.state import ActiveAdapters, AdapterState, Chain

MAX_PADDING = 4
"""Largest ratio of the dimensions of layers that are stacked together."""


@dataclass(frozen=True)
class Part:
    """Adapters whose parameters have equal shapes, with their layers and the layers' positions in the model."""

    adapters: list[Adapter] = field(default_factory=list)
    layers: list[nn.Module] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The largest dimension of a parameter."""
        return max(max(parameter.shape) for parameter in self.adapters[0].parameters())

    @property
    def has_bias(self) -> bool:
        """Whether a layer has a bias; where the factors depend on it, all layers have one or none has."""
        return any(layer.bias is not None for layer in self.layers)

    def biases(self, like: Tensor) -> Tensor:
        """The layers' biases, stacked, on the device and in the dtype of ``like``; zeros without biases."""
        if not self.has_bias:
            return like.new_zeros(len(self.layers), matrix_shape(self.layers[0])[0])
        return _stack((layer.bias for layer in self.layers), like.device).to(like.dtype)


@dataclass(frozen=True)
class Group:
    """Adapters of one configuration. Parameters of smaller layers are padded with zeros, which changes no product."""

    parts: list[Part]

    def factors(self, strength: float, device: torch.device, dtype: torch.dtype) -> list[tuple[int, LayerFactors]]:
        """The position and the factors of each layer, computed in float32 and cast to ``dtype``."""
        adapters = (module for part in self.parts for adapter in part.adapters for module in adapter.modules())
        layers = (layer for part in self.parts for layer in part.layers)
        with own_precision(device), offloaded_weights([*adapters, *layers]):
            return self._factors(strength, device, dtype)

    def _factors(self, strength: float, device: torch.device, dtype: torch.dtype) -> list[tuple[int, LayerFactors]]:
        first = self.parts[0].adapters[0]
        names = [name for name, _ in first.named_parameters()]
        values = {
            name: _padded([_stack(map(attrgetter(name), part.adapters), device) for part in self.parts])
            for name in names
        }
        factors = first.factors(values, strength)._replace(**_training_options(first.config))
        if factors.magnitude is None and factors.depend_on_bias and any(part.has_bias for part in self.parts):
            like = next(factors.tensors())
            factors = factors.with_bias(_padded([part.biases(like) for part in self.parts]))
        if factors.magnitude is None:
            factors = factors.map(lambda tensor: tensor.to(dtype))
        found: list[tuple[int, LayerFactors]] = []
        for part, own in zip(self.parts, factors.split([len(part.layers) for part in self.parts]), strict=True):
            own = own if part.has_bias else own._replace(shift=None, offset=None)
            own = own.narrow(*matrix_shape(part.layers[0])) if len(self.parts) > 1 else own
            each = own.unstack()
            if factors.magnitude is not None:
                each = [_scaled(f, layer, strength, dtype) for f, layer in zip(each, part.layers, strict=True)]
            found.extend(zip(part.positions, each, strict=True))
        return found


def _scaled(factors: LayerFactors, layer: nn.Module, strength: float, dtype: torch.dtype) -> LayerFactors:
    """Factors with a magnitude, with the scale that it implies for the layer's weight, cast to ``dtype``."""
    like = next(factors.tensors())
    bias = cast(Tensor | None, layer.bias)
    factors = factors.with_weight(as_matrix(layer).to(like), strength)
    return factors.with_bias(None if bias is None else bias.to(like)).map(lambda tensor: tensor.to(dtype))


def _statics(factors: LayerFactors) -> dict[str, Any]:
    return {"dropout": factors.dropout, "units": factors.units, "least_rank": factors.least_rank}


def _training_options(config: MethodConfig) -> dict[str, Any]:
    return {"dropout": config.dropout, "units": config.units, "least_rank": config.timestep_rank}


def _stack(tensors: Iterable[Any], device: torch.device) -> Tensor:
    return torch.stack([tensor.to(device) for tensor in tensors])


def _padded(stacks: list[Tensor]) -> Tensor:
    """Concatenate stacks (n, …), padded with zeros to the largest size of every other dimension."""
    sizes = [max(stack.shape[axis] for stack in stacks) for axis in range(1, stacks[0].ndim)]
    missing = [[size - own for size, own in zip(sizes, stack.shape[1:], strict=True)] for stack in stacks]
    padded = [
        F.pad(stack, [pad for size in reversed(more) for pad in (0, size)]) if any(more) else stack
        for stack, more in zip(stacks, missing, strict=True)
    ]
    return torch.cat(padded) if len(padded) > 1 else padded[0]


class Preparation:
    """The adapted layers of a model, grouped for preparing their factors."""

    def __init__(self, state: AdapterState, layers: Sequence[nn.Module]):
        self.state, self.layers, self.version = state, list(layers), state.version
        self.groups = {name: self._group(name) for name in state.names}

    def assign(self, device: torch.device) -> None:
        """Give every layer the chains of the active adapters: computed, or those of ``activation.frozen``."""
        for adapters, chains in zip(self._containers(), self.chains(device), strict=True):
            adapters.chains = chains

    def chains(self, device: torch.device) -> list[tuple[tuple[Chain, int], ...]]:
        """Each layer's chain and number of samples for every group of the batch; empty if no adapter is active."""
        assigned = [(self._chains_of(active, device), count) for active, count in self.state.assignments]
        return [
            tuple((chains[i], count) for chains, count in assigned) if any(chains[i] for chains, _ in assigned) else ()
            for i in range(len(self.layers))
        ]

    def _chains_of(self, active: ActiveAdapters, device: torch.device) -> list[Chain]:
        frozen = self.state.frozen
        if frozen is not None and active in frozen:
            return frozen[active]
        chains = self._compute(active, device)
        if frozen is not None:
            frozen[active] = chains
        return chains

    def _compute(self, active: ActiveAdapters, device: torch.device) -> list[Chain]:
        found: list[list[LayerFactors]] = [[] for _ in self.layers]
        for name, strength in active:
            for group in self.groups.get(name, ()) if strength != 0 else ():
                layer = group.parts[0].layers[0]
                dtype = torch.float32 if self._composes(layer) else compute_dtype(layer)
                for position, factors in group.factors(strength, device, dtype):
                    found[position].append(factors)
        return [self._finish(layer, chain, device) for layer, chain in zip(self.layers, found, strict=True)]

    def _composes(self, layer: nn.Module) -> bool:
        """Whether the layer's adapters become one update: of a convolution, and within ``activation.frozen``."""
        return isinstance(layer, nn.Conv2d) or (self.state.frozen is not None and has_weight(layer))

    def _finish(self, layer: nn.Module, chain: list[LayerFactors], device: torch.device) -> Chain:
        dtype = compute_dtype(layer)
        if not chain or not self._composes(layer):
            return tuple(chain)
        if isinstance(layer, nn.Linear) and any(factors.blocks is not None for factors in chain):
            return tuple(factors.map(lambda tensor: tensor.to(dtype)) for factors in chain)  # cheaper than full rank
        with own_precision(device), offloaded_weights([layer]):
            weight = as_matrix(layer)
            keep = weight.dtype in PLAIN_DTYPES and self.state.frozen is None  # a copy would be kept for the backward
            up, down, scale = compose(weight.to(device, weight.dtype if keep else torch.float32), chain)
            factors = LayerFactors(update=(up, down), scale=scale, **_statics(chain[0]))
            bias = cast(Tensor | None, layer.bias)
            if bias is not None and scale is not None:
                factors = factors.with_bias(bias.to(scale))
        return (factors.map(lambda tensor: tensor.to(dtype)),)

    def _group(self, name: str) -> list[Group]:
        parts: dict[Any, dict[Any, Part]] = {}
        for position, (layer, adapters) in enumerate(zip(self.layers, self._containers(), strict=True)):
            if (adapter := adapters.get(name)) is None:
                continue
            together = adapter.config, isinstance(layer, nn.Conv2d), stored_weight(layer).dtype
            shapes = tuple(parameter.shape for parameter in adapter.parameters())
            key = shapes, _depends_on_bias(adapter) and layer.bias is None
            part = parts.setdefault(together, {}).setdefault(key, Part())
            part.adapters.append(adapter)
            part.layers.append(layer)
            part.positions.append(position)
        return [group for found in parts.values() for group in _groups_of(list(found.values()))]

    def _containers(self) -> list[Any]:
        return [layer.adapters for layer in self.layers]


_biased: dict[tuple[type, MethodConfig], bool] = {}


def _depends_on_bias(adapter: Adapter) -> bool:
    """Whether the factors of adapters of this class and configuration depend on the layer's bias."""
    key = type(adapter), adapter.config
    if key not in _biased:
        with torch.no_grad(), offloaded_weights(adapter.modules()):
            _biased[key] = adapter.own_factors().depend_on_bias
    return _biased[key]


def _groups_of(parts: list[Part]) -> list[Group]:
    """Groups of parts whose sizes differ by at most ``MAX_PADDING``."""
    groups: list[Group] = []
    for part in sorted(parts, key=lambda part: part.size):
        if groups and part.size <= MAX_PADDING * groups[-1].parts[0].size:
            groups[-1].parts.append(part)
        else:
            groups.append(Group([part]))
    return groups
