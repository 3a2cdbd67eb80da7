"""Prepare the factors of all adapted layers together, once per forward pass of the model.

Parameters of equal shapes are stacked: a few large operations instead of hundreds of small ones, forward and backward.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn

from hra_diffusion.adapters.factors import LayerFactors, compose
from hra_diffusion.adapters.householder import own_precision
from hra_diffusion.adapters.linear_map import (
    PLAIN_DTYPES,
    as_matrix,
    compute_dtype,
    has_weight,
    offloaded_weights,
    stored_weight,
)
from hra_diffusion.adapters.registry import Adapter
from hra_diffusion.adapters.state import ActiveAdapters, AdapterState, Chain


@dataclass(frozen=True)
class Group:
    """Adapters of one configuration and of equal shapes, with their layers and the layers' positions in the model."""

    adapters: list[Adapter] = field(default_factory=list)
    layers: list[nn.Module] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    """The modules that hold the parameters of adapters and layers."""

    def factors(self, strength: float, device: torch.device, dtype: torch.dtype) -> list[LayerFactors]:
        """The factors of each layer, computed in float32 and cast to ``dtype``."""
        with own_precision(device), offloaded_weights(self.modules):
            return self._factors(strength, device, dtype)

    def _factors(self, strength: float, device: torch.device, dtype: torch.dtype) -> list[LayerFactors]:
        first = self.adapters[0]
        names = [name for name, _ in first.named_parameters()]
        values = {name: self._stack(map(attrgetter(name), self.adapters), device) for name in names}
        factors = first.factors(values, strength)
        if self.layers[0].bias is not None and (factors.scale is not None or factors.left):
            bias = self._stack((layer.bias for layer in self.layers), device)
            factors = factors.with_bias(bias.to(next(factors.tensors()).dtype))
        factors = factors._replace(dropout=first.config.dropout)
        return factors.map(lambda tensor: tensor.to(dtype)).unstack()

    @staticmethod
    def _stack(tensors: Any, device: torch.device) -> Tensor:
        return torch.stack([tensor.to(device) for tensor in tensors])


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
                layer = group.layers[0]
                dtype = torch.float32 if self._composes(layer) else compute_dtype(layer)
                for position, factors in zip(group.positions, group.factors(strength, device, dtype), strict=True):
                    found[position].append(factors)
        return [self._finish(layer, chain, device) for layer, chain in zip(self.layers, found, strict=True)]

    def _composes(self, layer: nn.Module) -> bool:
        """Whether the layer's adapters become one update: of a convolution, and within ``activation.frozen``."""
        return isinstance(layer, nn.Conv2d) or (self.state.frozen is not None and has_weight(layer))

    def _finish(self, layer: nn.Module, chain: list[LayerFactors], device: torch.device) -> Chain:
        if not chain or not self._composes(layer):
            return tuple(chain)
        dtype = compute_dtype(layer)
        with own_precision(device), offloaded_weights([layer]):
            weight = as_matrix(layer)
            keep = weight.dtype in PLAIN_DTYPES and self.state.frozen is None  # a copy would be kept for the backward
            up, down, scale = compose(weight.to(device, weight.dtype if keep else torch.float32), chain)
            factors = LayerFactors(update=(up, down), scale=scale, dropout=chain[0].dropout)
            bias = cast(Tensor | None, layer.bias)
            if bias is not None and scale is not None:
                factors = factors.with_bias(bias.to(scale))
        return (factors.map(lambda tensor: tensor.to(dtype)),)

    def _group(self, name: str) -> list[Group]:
        found: dict[Any, Group] = {}
        for position, (layer, adapters) in enumerate(zip(self.layers, self._containers(), strict=True)):
            if (adapter := adapters.get(name)) is not None:
                shapes = tuple(parameter.shape for parameter in adapter.parameters())
                key = adapter.config, shapes, type(layer), stored_weight(layer).dtype, layer.bias is None
                group = found.setdefault(key, Group())
                group.adapters.append(adapter)
                group.layers.append(layer)
                group.positions.append(position)
                group.modules.extend([layer, *adapter.modules()])
        return list(found.values())

    def _containers(self) -> list[Any]:
        return [layer.adapters for layer in self.layers]
