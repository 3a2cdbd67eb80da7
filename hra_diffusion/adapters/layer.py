"""Hosts adapters on a frozen layer: which applies to which part of the batch, how strongly, merged or live.

A hosting layer is the very same module with its class swapped for one that also holds adapters (as PyTorch's own
parametrizations do): its weight, its bias and their names in the state dict stay where they were.
"""

import functools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hra_diffusion.adapters.fingerprint import probe
from hra_diffusion.adapters.householder import own_precision
from hra_diffusion.adapters.quantization import Quantised
from hra_diffusion.adapters.registry import LowRank
from hra_diffusion.errors import UserError

ActiveAdapters = tuple[tuple[str, float], ...]
"""Adapters to apply, as (name, strength), in order: each adapts the weight that the ones before it left."""


@dataclass
class AdapterState:
    """Which adapters the layers of one model apply; one object, shared by all its hosts.

    ``mix`` holds for the whole batch; with ``groups``, contiguous groups of the batch, ``(mix, count)`` each, have
    their own. The pattern repeats when the batch is a multiple of it, as classifier-free guidance makes it.
    """

    mix: ActiveAdapters = ()
    groups: tuple[tuple[ActiveAdapters, int], ...] = ()
    merged: bool = False
    names: list[str] = field(default_factory=list)
    """The adapters on the model, in the order they came."""
    hooks: dict[str, RemovableHandle] = field(default_factory=dict)
    """What prepares a forward pass, by adapter."""

    def split(self, batch: Tensor) -> list[tuple[ActiveAdapters, Tensor]]:
        """The batch's groups with their mixes. Raises ValueError if the pattern does not fit the batch."""
        if not self.groups:
            return [(self.mix, batch)]
        size = sum(count for _, count in self.groups)
        if batch.shape[0] % size:
            raise UserError(
                f"the adapter groups cover {size} samples, which does not divide a batch of {batch.shape[0]}"
            )
        repeated = self.groups * (batch.shape[0] // size)
        parts = batch.split([count for _, count in repeated])
        return [(mix, part) for (mix, _), part in zip(repeated, parts, strict=True)]


@dataclass(frozen=True)
class Update:
    """A mix as one low-rank update of a layer's weight, None if it changes nothing, and what it was made from."""

    change: LowRank | None
    parameters: list[nn.Parameter]
    state: tuple[Any, ...]


class AdaptedLayer(nn.Module):
    """Mixed into the class of a frozen linear or conv layer by ``host``.

    While gradients are recorded a method runs in its own form. Without them every mix is one low-rank update, the same
    that export writes: all methods then cost what LoRA does, and the base's own product serves the whole batch.
    """

    adapters: nn.ModuleDict
    routing: AdapterState
    updates: dict[ActiveAdapters, Update]

    def forward(self, x: Tensor) -> Tensor:
        if self.routing.merged:
            return super().forward(x)
        parts = self.routing.split(x)
        if (
            torch.is_grad_enabled() or "_hf_hook" in self.__dict__
        ):  # offloaded: adapters are here in their own calls only
            self.updates.clear()  # what is trained changes, and not every optimiser tells (AdamW's fused steps do not)
            adapted = [self._adapted(part, mix) for mix, part in parts]
            return adapted[0] if len(adapted) == 1 else torch.cat(adapted)
        y = super().forward(x)
        for (mix, part), (_, out) in zip(parts, self.routing.split(y), strict=True):
            if change := self.update(mix, y.dtype):
                add_update(self, part, out, change)
        return y

    def _load_from_state_dict(self, *state: Any, **more: Any) -> None:
        super()._load_from_state_dict(*state, **more)
        self.updates.clear()

    def add(self, name: str, adapter: nn.Module) -> None:
        """Put an adapter on the layer."""
        self.adapters[key(name)] = adapter
        self.updates.clear()

    def remove(self, name: str) -> None:
        """Take an adapter off, if it is here."""
        if key(name) in self.adapters:
            del self.adapters[key(name)]
            self.updates.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AdaptedLayer":
        """Moving the model moves its adapters; casting it leaves them in their own precision."""
        adapters = cast(nn.ModuleDict, self._modules.pop("adapters"))
        super()._apply(fn, recurse)
        self.updates.clear()
        self.adapters = adapters._apply(lambda t: moved if (moved := fn(t)).dtype == t.dtype else t.to(moved.device))
        return self

    def active(self, mix: ActiveAdapters) -> list[tuple[Any, float]]:
        """The adapters of ``mix`` that live on this layer and have a strength other than 0."""
        return [(self.adapters[key(name)], s) for name, s in mix if key(name) in self.adapters and s != 0]

    def adapted_weight(self, mix: ActiveAdapters) -> Tensor:
        """The weight with ``mix`` in it, computed in float32, in the weight's shape and dtype."""
        own = cast(Tensor, self.weight)
        weight = as_matrix(self).float()
        for adapter, strength in self.active(mix):
            weight = adapter.adapted_weight(weight, strength)
        return weight.reshape(own.shape).to(own.dtype)

    def update(self, mix: ActiveAdapters, dtype: torch.dtype) -> LowRank | None:
        """``mix`` as one low-rank update in ``dtype``, computed in float32; kept while it is in use and nothing of it
        changes."""
        kept = self.updates.get(mix)
        if kept and kept.state == self._state(kept.parameters, dtype):
            return kept.change
        in_use = {mix for mix, _ in self.routing.groups} or {self.routing.mix}
        self.updates = {other: update for other, update in self.updates.items() if other in in_use}
        active, change = self.active(mix), None
        if active:
            weight = as_matrix(self).float()
            with own_precision(weight):
                exact = combined(weight, active)
            scale = None if exact.scale is None else exact.scale.to(dtype)
            change = LowRank(exact.up.to(dtype), exact.down.to(dtype), scale)
        parameters = [parameter for adapter, _ in active for parameter in adapter.parameters()]
        self.updates[mix] = Update(change, parameters, self._state(parameters, dtype))
        return change

    def _state(self, parameters: Sequence[nn.Parameter], dtype: torch.dtype) -> tuple[Any, ...]:
        own = self.codes if isinstance(self, Quantised) else self.weight
        return dtype, _version_key(cast(Tensor, own)), *map(_version_key, parameters)

    def _adapted(self, x: Tensor, mix: ActiveAdapters) -> Tensor:
        active = self.active(mix)
        if not active:
            return super().forward(x)
        project = product(self)
        for adapter, strength in active:
            project = functools.partial(adapter, inner=project, strength=strength)
        return conv_as_linear(self, x, project)


def wrap(layer: nn.Module, routing: AdapterState) -> AdaptedLayer:
    """Turn a linear or conv layer, in place, into one that can hold adapters; a host is returned as it is.

    Raises ValueError for any other layer, and for a conv this library can't adapt, saying why.
    """
    if isinstance(layer, AdaptedLayer):
        return layer
    if reason := unsupported(layer):
        raise UserError(reason)
    _clear_forward(layer)
    layer.__class__ = _hosting(type(layer))
    layer.adapters = nn.ModuleDict()
    layer.routing = cast(Any, routing)
    layer.updates = cast(Any, {})
    return cast(AdaptedLayer, layer)


def unwrap(layer: AdaptedLayer) -> None:
    """Turn a host back into the plain layer it was. Its adapters are dropped."""
    del layer.adapters
    del layer.routing
    del layer.updates
    _clear_forward(layer)
    layer.__class__ = type(layer).__bases__[1]


def _clear_forward(layer: nn.Module) -> None:
    """accelerate leaves the class's forward on a layer whose hooks it took off: that of the next class is to serve."""
    if getattr(layer.__dict__.get("forward"), "__func__", None) is type(layer).forward:
        del layer.__dict__["forward"]


def unsupported(layer: nn.Module) -> str | None:
    """Why this layer can't hold an adapter, or None if it can."""
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1:
            return f"a grouped convolution ({layer.groups} groups) can't be adapted: its weight is not one matrix"
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return "a convolution can be adapted only with explicit zero padding"
        return None
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "the output projection of nn.MultiheadAttention is never called as a layer; adapters have no effect"
    if isinstance(layer, nn.Linear):
        return None
    return f"a {type(layer).__name__} has no weight matrix to adapt; only linear and conv layers have"


def as_matrix(layer: nn.Module) -> Tensor:
    """The layer's weight as (d_out, d_in); a conv's is flattened to (c_out, c_in·k·k)."""
    return cast(Tensor, layer.weight).flatten(1)


def original_weight(layer: nn.Module) -> Tensor:
    """The layer's own weight, also while adapters are merged into it."""
    return cast(Tensor, layer.__dict__.get("unmerged_weight", layer.weight))


_probes: "weakref.WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], float]]" = weakref.WeakKeyDictionary()


def probe_of(layer: nn.Module) -> float:
    """The probe of the layer's weight as the base has it, also while it is merged into or stored in fewer bits.

    Kept until the weight changes: probing all of a large base takes longer than loading an adapter.
    """
    if isinstance(layer, Quantised):
        return layer.probe
    weight = original_weight(layer)
    state = (weight.dtype, weight.device, _version_key(weight))
    if layer not in _probes or _probes[layer][0] != state:
        _probes[layer] = state, probe(weight)
    return _probes[layer][1]


def product(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """Rows (…, d_in) times the layer's weight (d_out, d_in): (…, d_out)."""
    return layer.rows if isinstance(layer, Quantised) else functools.partial(F.linear, weight=as_matrix(layer))


def conv_as_linear(layer: nn.Module, x: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
    """Run ``project``, a map of rows (…, d_in) to (…, d_out), where the layer's own product stood; then add its bias.

    A linear's rows are its input. A conv's rows are its patches, taken with its own stride, padding and dilation.
    """
    bias = cast(Tensor | None, layer.bias)
    if not isinstance(layer, nn.Conv2d):
        y = project(x)
        return y if bias is None else y + bias.to(y.dtype)
    kernel, dilation, padding, stride = layer.kernel_size, layer.dilation, cast(Any, layer.padding), layer.stride
    size = [(x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    y = project(F.unfold(x, kernel, dilation, padding, stride).mT).mT
    y = y if bias is None else y + bias.to(y.dtype)[:, None]
    return y.reshape(x.shape[0], -1, *size)


def combined(weight: Tensor, active: Sequence[tuple[Any, float]]) -> LowRank:
    """Adapters one after another as one update of ``weight`` (d_out, d_in): ``diag(scale) (W + up · down)``."""
    up, down, scale = active[0][0].low_rank(weight, active[0][1])
    for (before, left), (adapter, strength) in pairwise(active):
        weight = before.adapted_weight(weight, left)
        then = adapter.low_rank(weight, strength)
        up = torch.cat([up, then.up if scale is None else then.up / scale[:, None]], dim=1)
        down = torch.cat([down, then.down])
        if then.scale is not None:
            scale = then.scale if scale is None else scale * then.scale
    return LowRank(up, down, scale)


def add_update(layer: nn.Module, x: Tensor, y: Tensor, change: LowRank) -> None:
    """Make ``y``, the layer's own output for ``x``, that of the updated weight, in place."""
    up, down, scale = change
    if isinstance(layer, nn.Conv2d):
        kernels = down.unflatten(1, (layer.in_channels, *layer.kernel_size))
        low = F.conv2d(x, kernels, None, layer.stride, cast(Any, layer.padding), layer.dilation)
        y += F.conv2d(low, up[:, :, None, None])
    else:
        y += F.linear(F.linear(x, down), up)
    if scale is not None:  # the bias is not scaled
        bias = cast(Tensor | None, layer.bias)
        shape = (-1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
        y *= scale.view(shape)
        if bias is not None:
            y += ((1 - scale) * bias.to(y.dtype)).view(shape)


def _version_key(tensor: Tensor) -> tuple[int, int]:
    """Which values a tensor holds, as far as it tells: writes in inference mode and by fused optimisers don't show."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def key(name: str) -> str:
    """The adapter's key in a host's ModuleDict; marked, so that no name meets one of the dict's own attributes."""
    return f"@{name}"


@functools.cache
def _hosting(base: type[nn.Module]) -> type[nn.Module]:
    return type(f"Hosting{base.__name__}", (AdaptedLayer, base), {})
