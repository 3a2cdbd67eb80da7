"""Adapted layers: a frozen linear or convolution layer that holds adapters and applies the active ones.

An adapted layer is the same module with its class swapped for one that also holds adapters, as in PyTorch's own
parametrizations. Its weight, its bias and their names in the state dict don't change.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from hra_diffusion.adapters.cache import CachedUpdate, cache_key
from hra_diffusion.adapters.householder import own_precision
from hra_diffusion.adapters.linear_map import (
    add_low_rank,
    as_matrix,
    base_forward,
    conv_as_linear,
    unsupported_reason,
)
from hra_diffusion.adapters.low_rank import compose
from hra_diffusion.adapters.registry import LowRank
from hra_diffusion.adapters.state import ActiveAdapters, AdapterState
from hra_diffusion.errors import UserError


class AdaptedLayer(nn.Module):
    """Mixin of ``wrap`` for the class of a frozen linear or convolution layer.

    With gradients enabled each method computes in its own form. Without gradients the active adapters are applied as
    one low-rank update, the same that export writes: every method then costs as much as LoRA, and one product with the
    base weight serves the whole batch.
    """

    adapters: nn.ModuleDict
    adapter_state: AdapterState
    cached_updates: dict[ActiveAdapters, CachedUpdate]

    def forward(self, x: Tensor) -> Tensor:
        if self.adapter_state.merged:
            return super().forward(x)
        parts = self.adapter_state.split(x)
        # an offloaded layer has its adapters on its device only while its own hook runs
        if torch.is_grad_enabled() or "_hf_hook" in self.__dict__:
            self.cached_updates.clear()  # training changes the parameters, and fused optimisers don't mark it
            outputs = [self._adapted_forward(part, active) for active, part in parts]
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        y = super().forward(x)
        for (active, part), (_, output) in zip(parts, self.adapter_state.split(y), strict=True):
            if update := self.low_rank_update(active, y.dtype):
                add_low_rank(self, part, output, update)
        return y

    def _adapted_forward(self, x: Tensor, active: ActiveAdapters) -> Tensor:
        adapters = self.active_adapters(active)
        if not adapters:
            return super().forward(x)
        project = base_forward(self)
        for adapter, strength in adapters:
            project = functools.partial(adapter, base_forward=project, strength=strength)
        return conv_as_linear(self, x, project)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.cached_updates.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AdaptedLayer":
        """Move the adapters along with the model. A cast of the model does not change their dtype."""
        adapters = cast(nn.ModuleDict, self._modules.pop("adapters"))
        super()._apply(fn, recurse)
        self.cached_updates.clear()
        self.adapters = adapters._apply(lambda t: moved if (moved := fn(t)).dtype == t.dtype else t.to(moved.device))
        return self

    def add_adapter(self, name: str, adapter: nn.Module) -> None:
        """Add an adapter to the layer."""
        self.adapters[adapter_key(name)] = adapter
        self.cached_updates.clear()

    def remove_adapter(self, name: str) -> None:
        """Remove an adapter from the layer, if present."""
        if adapter_key(name) in self.adapters:
            del self.adapters[adapter_key(name)]
            self.cached_updates.clear()

    def active_adapters(self, active: ActiveAdapters) -> list[tuple[Any, float]]:
        """The adapters of ``active`` that are on this layer with a strength other than 0, with their strengths."""
        return [
            (self.adapters[adapter_key(name)], strength)
            for name, strength in active
            if adapter_key(name) in self.adapters and strength != 0
        ]

    def adapted_weight(self, active: ActiveAdapters) -> Tensor:
        """The adapted weight, computed in float32, in the weight's own shape and dtype."""
        own = cast(Tensor, self.weight)
        weight = as_matrix(self).float()
        for adapter, strength in self.active_adapters(active):
            weight = adapter.adapted_weight(weight, strength)
        return weight.reshape(own.shape).to(own.dtype)

    def low_rank_update(self, active: ActiveAdapters, dtype: torch.dtype) -> LowRank | None:
        """The active adapters as one low-rank update in ``dtype``, computed in float32.

        Cached until the weight or a parameter changes, or the adapters are no longer active.
        """
        cached = self.cached_updates.get(active)
        if cached and cached.key == cache_key(self, cached.parameters, dtype):
            return cached.low_rank
        in_use = {active for active, _ in self.adapter_state.groups} or {self.adapter_state.active}
        self.cached_updates = {other: update for other, update in self.cached_updates.items() if other in in_use}
        adapters, update = self.active_adapters(active), None
        if adapters:
            weight = as_matrix(self).float()
            with own_precision(weight):
                exact = compose(weight, adapters)
            scale = None if exact.scale is None else exact.scale.to(dtype)
            update = LowRank(exact.up.to(dtype), exact.down.to(dtype), scale)
        parameters = [parameter for adapter, _ in adapters for parameter in adapter.parameters()]
        self.cached_updates[active] = CachedUpdate(update, parameters, cache_key(self, parameters, dtype))
        return update

    def merge(self, active: ActiveAdapters) -> None:
        """Replace the weight by the adapted weight; the original one is kept for ``unmerge``."""
        if self.active_adapters(active):
            weight = cast(nn.Parameter, self.weight)
            merged = self.adapted_weight(active).detach()
            self.__dict__["unmerged_weight"] = weight.data
            weight.data = merged

    def unmerge(self) -> None:
        """Restore the original weight, bit for bit unless the model was cast while merged."""
        if (original := self.__dict__.pop("unmerged_weight", None)) is not None:
            weight = cast(nn.Parameter, self.weight)
            weight.data = original.to(weight)


def original_weight(layer: nn.Module) -> Tensor:
    """The layer's own weight, also while adapters are merged into it."""
    return cast(Tensor, layer.__dict__.get("unmerged_weight", layer.weight))


def wrap(layer: nn.Module, state: AdapterState) -> AdaptedLayer:
    """Turn a linear or convolution layer, in place, into an adapted layer; an adapted layer is returned unchanged.

    Raises UserError if the layer can't be adapted.
    """
    if isinstance(layer, AdaptedLayer):
        return layer
    if reason := unsupported_reason(layer):
        raise UserError(reason)
    _reset_forward(layer)
    layer.__class__ = _adapted_class(type(layer))
    layer.adapters = nn.ModuleDict()
    layer.adapter_state = cast(Any, state)
    layer.cached_updates = cast(Any, {})
    return cast(AdaptedLayer, layer)


def unwrap(layer: AdaptedLayer) -> None:
    """Turn an adapted layer, in place, back into the plain layer, without its adapters."""
    del layer.adapters
    del layer.adapter_state
    del layer.cached_updates
    _reset_forward(layer)
    layer.__class__ = type(layer).__bases__[1]


def adapter_key(name: str) -> str:
    """The adapter's key in ``AdaptedLayer.adapters``. The prefix avoids clashes with attributes of ModuleDict."""
    return f"@{name}"


def _reset_forward(layer: nn.Module) -> None:
    """Drop an instance's ``forward`` that is its class's own, as accelerate leaves it when it removes its hooks."""
    if getattr(layer.__dict__.get("forward"), "__func__", None) is type(layer).forward:
        del layer.__dict__["forward"]


@functools.cache
def _adapted_class(base: type[nn.Module]) -> type[nn.Module]:
    return type(f"Adapted{base.__name__}", (AdaptedLayer, base), {})
