"""Adapted layers: a frozen linear or convolution layer with adapters in its child module ``adapters``.

Hooks around the layer's own forward pass apply the adapters, so that it may be any: patched, quantised, offloaded or
another adapter's. The layer's class, weight and bias, and their names in the state dict, don't change.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hra_diffusion.adapters.factors import Thinning, adapted_weight, rotate, rotate_blocks, thinning
from hra_diffusion.adapters.fusion import factors_of
from hra_diffusion.adapters.linear_map import adapted_output, unsupported_reason, weight_of
from hra_diffusion.adapters.preparation import Preparation
from hra_diffusion.adapters.state import ActiveAdapters, AdapterState, Chain
from hra_diffusion.errors import UserError


class Call(NamedTuple):
    """What a forward pass of the layer applies to some of its rows.

    ``inputs``: the input of the layer, then that of each adapter of the chain: the last adapter takes the layer's.
    """

    chain: Chain
    inputs: list[Tensor]
    thinnings: list[Thinning | None]


class LayerAdapters(nn.ModuleDict):
    """The adapters of one layer, and the hooks that apply the active ones.

    In a forward pass of the model the layer uses the factors that were prepared for all layers together; called alone,
    it prepares its own. A cast of the model does not change the dtype of adapters.
    """

    def __init__(self, state: AdapterState):
        super().__init__()
        self.state = state
        self.chains: tuple[tuple[Chain, int], ...] = ()
        """The prepared chain of each group of the batch, with the group's number of samples."""
        self.original_weight: Tensor | None = None
        """The layer's own weight while adapters are merged into it."""
        self.alone = False
        """Whether the latest forward pass prepared its own factors; its recomputation in the backward pass does too."""
        self.handles: list[RemovableHandle] = []
        self._calls: dict[int, list[Call]] = {}

    def get(self, name: str) -> Any:
        """The adapter of this name, or None."""
        return self._modules.get(adapter_key(name))

    def active_adapters(self, active: ActiveAdapters) -> list[tuple[Any, float]]:
        """The adapters of ``active`` that are on this layer with a strength other than 0, with their strengths."""
        found = [(self.get(name), strength) for name, strength in active if strength != 0]
        return [(adapter, strength) for adapter, strength in found if adapter is not None]

    def attach_to(self, layer: nn.Module) -> None:
        """Add the hooks to the layer, if they are missing, after a change of adapters."""
        self.preparation = Preparation(self.state, [layer])
        if not self.handles:
            self.handles = [
                layer.register_forward_pre_hook(self.adapt_input, with_kwargs=True),
                layer.register_forward_hook(self.adapt_output, with_kwargs=True),
            ]

    def remove_hooks(self) -> None:
        """Remove the hooks from the layer."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def adapt_input(self, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Pre-forward hook: apply right factors to the layer's input."""
        thread = 0 if torch.compiler.is_compiling() else threading.get_ident()
        self._calls.pop(thread, None)
        x, *others = args or (kwargs["input"],)
        if not (chains := self._current_chains(layer, x)):
            return None
        counts = [count for _, count in chains]
        parts = [x] if len(chains) == 1 else x.split(self.state.sizes(counts, x.shape[0]))
        repeated = [_matching(chain, x) for chain, _ in chains] * (len(parts) // len(chains))
        shares_of_parts = self.state.rank_shares_of([part.shape[0] for part in parts], layer.training)
        calls = [
            _call(chain, part, _thinnings(layer, chain, shares))
            for chain, part, shares in zip(repeated, parts, shares_of_parts, strict=True)
        ]
        self._calls[thread] = calls
        first = calls[0].inputs[0] if len(calls) == 1 else torch.cat([call.inputs[0] for call in calls])
        return (first, *others), {key: value for key, value in kwargs.items() if args or key != "input"}

    def adapt_output(self, layer: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
        """Forward hook: apply updates, scales and left factors to the layer's output."""
        if (calls := self._calls.pop(0 if torch.compiler.is_compiling() else threading.get_ident(), None)) is None:
            return None
        parts = [output] if len(calls) == 1 else output.split([call.inputs[0].shape[0] for call in calls])
        outputs = []
        for call, part in zip(calls, parts, strict=True):
            for factors, x, thin in zip(call.chain, call.inputs[1:], call.thinnings, strict=True):
                part = adapted_output(layer, part, x, factors, thin)
            outputs.append(part)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _current_chains(self, layer: nn.Module, x: Tensor) -> tuple[tuple[Chain, int], ...]:
        state = self.state
        if state.merged:
            return ()
        if torch.compiler.is_compiling():
            alone = not (state.running or state.frozen is not None)
        elif torch._C._current_graph_task_id() != -1:  # the backward pass: gradient checkpointing
            alone = self.alone
        else:
            alone = self.alone = not (state.running or state.frozen is not None) or self._reentrant()
        return self.preparation.chains(x.device)[0] if alone else self.chains

    def _reentrant(self) -> bool:
        """Whether reentrant gradient checkpointing runs the layer, whose backward pass takes a graph of its own."""
        chain = next((chain for chain, _ in self.chains if chain), None)
        return not torch.is_grad_enabled() and chain is not None and next(chain[0].tensors()).requires_grad

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LayerAdapters":
        """Move the adapters along with the model, without a change of dtype."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)
        if self.state.frozen is not None:
            self.chains = tuple((tuple(f.map(move) for f in chain), count) for chain, count in self.chains)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy or a pickle, without prepared factors."""
        return self.__dict__ | {"chains": (), "_calls": {}}

    def extra_repr(self) -> str:
        """Return the active adapters with their strengths."""
        active = (f"{name} × {strength:g}" for name, strength in self.state.active if self.get(name) is not None)
        return f"active: {', '.join(active) or 'none'}"


def adapters_on(layer: nn.Module) -> LayerAdapters | None:
    """The layer's adapters, or None for a layer without any."""
    adapters = layer._modules.get("adapters")
    return adapters if isinstance(adapters, LayerAdapters) else None


def adapters_of(layer: nn.Module) -> LayerAdapters:
    """The adapters of an adapted layer."""
    return cast(LayerAdapters, layer.adapters)


def add_adapter(layer: nn.Module, state: AdapterState, name: str, adapter: nn.Module) -> None:
    """Add an adapter to a linear or convolution layer. Raises UserError if the layer can't be adapted."""
    if (adapters := adapters_on(layer)) is None:
        if reason := unsupported_reason(layer):
            raise UserError(reason)
        adapters = layer.adapters = LayerAdapters(state)
    adapters[adapter_key(name)] = adapter
    adapters.attach_to(layer)


def remove_adapter(layer: nn.Module, name: str) -> None:
    """Remove an adapter from an adapted layer, if it is there, and the hooks after the last one."""
    adapters = adapters_of(layer)
    if adapter_key(name) not in adapters:
        return
    del adapters[adapter_key(name)]
    if adapters:
        adapters.attach_to(layer)
    else:
        adapters.remove_hooks()
        del layer.adapters


def adapter_key(name: str) -> str:
    """The adapter's key in ``LayerAdapters``. The prefix avoids clashes with attributes of ModuleDict."""
    return f"@{name}"


def original_weight(layer: nn.Module) -> Tensor:
    """The layer's own weight, also while adapters are merged into it."""
    adapters = adapters_on(layer)
    own = adapters.original_weight if adapters is not None else None
    return weight_of(layer) if own is None else own


def weight_with_adapters(layer: nn.Module, active: ActiveAdapters) -> Tensor:
    """The layer's adapted weight, computed in float32, in the weight's own shape and dtype."""
    own, adapters = weight_of(layer), adapters_of(layer)
    weight = own.flatten(1).float()
    for factors in factors_of(adapters.active_adapters(active), weight, adapters.state.fusion):
        weight = adapted_weight(weight, factors)
    return weight.reshape(own.shape).to(own.dtype)


def merge_layer(layer: nn.Module, active: ActiveAdapters) -> None:
    """Replace the layer's weight by the adapted weight; the original one is kept for ``unmerge_layer``."""
    adapters = adapters_of(layer)
    if adapters.active_adapters(active):
        merged = weight_with_adapters(layer, active).detach()
        weight = cast(nn.Parameter, layer.weight)
        adapters.original_weight, weight.data = weight.data, merged


def unmerge_layer(layer: nn.Module) -> None:
    """Restore the original weight, bit for bit unless the model was cast while merged."""
    adapters = adapters_of(layer)
    if adapters.original_weight is not None:
        weight = cast(nn.Parameter, layer.weight)
        weight.data, adapters.original_weight = adapters.original_weight.to(weight), None


def _call(chain: Chain, x: Tensor, thinnings: list[Thinning | None]) -> Call:
    inputs = [x]
    for factors, thin in zip(reversed(chain), reversed(thinnings), strict=True):
        last = inputs[-1] if factors.blocks is None else rotate_blocks(inputs[-1], factors.blocks)
        inputs.append(rotate(last, factors.right, thin=thin) if factors.right else last)
    return Call(chain, inputs[::-1], thinnings)


def _thinnings(layer: nn.Module, chain: Chain, rank_shares: Tensor | None) -> list[Thinning | None]:
    return [thinning(factors, rank_shares) if layer.training else None for factors in chain]


def _matching(chain: Chain, x: Tensor) -> Chain:
    """The chain on the device of ``x``, and in its dtype unless autocast chooses it."""
    if not chain:
        return chain
    first = next(chain[0].tensors())
    if first.device == x.device and (first.dtype == x.dtype or torch.is_autocast_enabled(x.device.type)):
        return chain
    dtype = first.dtype if torch.is_autocast_enabled(x.device.type) else x.dtype
    return tuple(factors.map(lambda tensor: tensor.to(x.device, dtype)) for factors in chain)
