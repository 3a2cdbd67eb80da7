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
from hra_diffusion.adapters.fusion import fuse
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
from hra_diffusion.adapters.state import ActiveAdapters, AdapterState, Chain, Fusion
from hra_diffusion.errors import UserError

MAX_PADDING = 4
"""Largest ratio of the dimensions of layers that are stacked together."""
MAX_FUSED = 4
"""Number of combinations of adapters whose fused factors are kept."""


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


def one_update(layer: nn.Module, weight: Tensor, chain: Sequence[LayerFactors]) -> LayerFactors:
    """The chain as one update of the layer's ``weight`` (d_out, d_in), in the weight's dtype, exact with its bias."""
    up, down, scale = compose(weight, chain)
    factors = LayerFactors(update=(up, down), scale=scale, **_statics(chain[0]))
    bias = cast(Tensor | None, layer.bias)
    return factors if bias is None or scale is None else factors.with_bias(bias.to(scale))


def _equal(one: list[list[LayerFactors]], other: list[list[LayerFactors]]) -> bool:
    pairs = zip(
        *([tensor for own in layers for f in own for tensor in f.tensors()] for layers in (one, other)), strict=True
    )
    return all(a.equal(b) for a, b in pairs)


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
        self.fused: dict[
            tuple[ActiveAdapters, torch.device], tuple[list[list[LayerFactors]], list[LayerFactors | None]]
        ] = {}
        """Of the latest combinations, the factors of each layer, and those that they were fused to."""

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
        key: tuple[ActiveAdapters, Fusion] = active, self.state.fusion
        if frozen is not None and key in frozen:
            return frozen[key]
        used = tuple((name, strength) for name, strength in active if strength != 0)
        fuses = self.state.fusion == "geodesic" and len(used) > 1
        found = self._fuse(used, device) if fuses else self._factors(used, device)
        chains = [self._finish(layer, chain, device) for layer, chain in zip(self.layers, found, strict=True)]
        if frozen is not None:
            frozen[key] = chains
        return chains

    def _factors(
        self, active: ActiveAdapters, device: torch.device, dtype: torch.dtype | None = None
    ) -> list[list[LayerFactors]]:
        """The factors of each layer's adapters, in ``dtype``; by default that in which they are used."""
        found: list[list[LayerFactors]] = [[] for _ in self.layers]
        for name, strength in active:
            for group in self.groups.get(name, ()):
                layer = group.parts[0].layers[0]
                own = dtype or (torch.float32 if self._composes(layer) else compute_dtype(layer))
                for position, factors in group.factors(strength, device, own):
                    found[position].append(factors)
        return found

    @torch.no_grad()
    def _fuse(self, active: ActiveAdapters, device: torch.device) -> list[list[LayerFactors]]:
        """The factors of each layer, those of several adapters fused; a layer with one adapter has that one's own."""
        if torch.compiler.is_compiling():
            raise UserError("fused adapters can't be prepared in a compiled model: run it within hra_diffusion.frozen")
        strengths = [[strength for _, strength in own.active_adapters(active)] for own in self._containers()]
        full = self._factors(tuple((name, 1.0) for name, _ in active), device, torch.float32)
        key, kept = (active, device), self.fused.pop((active, device), None)
        if kept is None or not _equal(kept[0], full):
            fused = [fuse(*own) if len(own[0]) > 1 else None for own in zip(full, strengths, strict=True)]
            kept = full, fused
        self.fused[key] = kept
        if len(self.fused) > MAX_FUSED:
            del self.fused[next(iter(self.fused))]
        alone = self._factors(active, device) if any(len(own) == 1 for own in strengths) else full
        return [
            [self._ready(layer, fused, device)] if fused else own
            for layer, fused, own in zip(self.layers, kept[1], alone, strict=True)
        ]

    def _ready(self, layer: nn.Module, factors: LayerFactors, device: torch.device) -> LayerFactors:
        """Fused factors with the layer's bias, in the dtype in which they are used."""
        dtype = torch.float32 if self._composes(layer) else compute_dtype(layer)
        with offloaded_weights([layer]):
            bias = cast(Tensor | None, layer.bias)
            factors = factors.with_bias(None if bias is None else bias.to(device, torch.float32))
        return factors.map(lambda tensor: tensor.to(dtype))

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
            factors = one_update(layer, weight.to(device, weight.dtype if keep else torch.float32), chain)
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
