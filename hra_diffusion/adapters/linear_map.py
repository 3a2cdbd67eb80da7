"""The contract of a layer that takes adapters: what its weight is, in any storage, and what its rows are.

A linear layer maps rows (…, d_in) to (…, d_out). A convolution is the same map of its input's patches, with the weight
flattened to (c_out, c_in·k·k). Adapters run around the layer's own forward pass, whatever that is; they read the weight
only to merge, to export, to compose several adapters and to adapt a convolution.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hra_diffusion.adapters.factors import LayerFactors, Thinning, add_low_rank, rotate
from hra_diffusion.adapters.quantization import Quantised
from hra_diffusion.errors import UserError

PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
READABLE_KINDS, READABLE_PACKAGES = ("Params4bit", "Int8Params", "GGUFParameter"), ("torchao", "optimum")
"""Classes of quantised weights, and packages with such classes, that ``weight_of`` dequantises."""


def unsupported_reason(layer: nn.Module) -> str | None:
    """Return why a layer can't be adapted, or None if it can."""
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


def matrix_shape(layer: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of the layer's weight as a matrix."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
    linear = cast(nn.Linear, layer)
    return linear.out_features, linear.in_features


def as_matrix(layer: nn.Module) -> Tensor:
    """The layer's weight as (d_out, d_in), dequantised. A convolution's is flattened to (c_out, c_in·k·k).

    Raises UserError if the weight can't be read.
    """
    return weight_of(layer).flatten(1)


def weight_of(layer: nn.Module) -> Tensor:
    """The layer's weight in floating point: its own, or the dequantised one.

    Reads weights quantised by this package, bitsandbytes, torchao, quanto and GGUF. Raises UserError for any other.
    """
    weight: Any = layer.weight
    if type(weight) in (nn.Parameter, Tensor) and weight.dtype in PLAIN_DTYPES:  # all that torch.compile can trace
        return weight
    kind = type(weight).__name__
    if kind == "Params4bit" and weight.quant_state is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    if kind == "Int8Params" and weight.dtype == torch.int8:
        scales = weight.SCB if cast(Any, layer).state.SCB is None else cast(Any, layer).state.SCB
        return weight.data * (scales.to(weight.device)[:, None] / 127)
    if kind == "GGUFParameter":
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        return cast(Tensor, dequantize_gguf_tensor(weight)).as_subclass(Tensor)
    if _package(weight) in READABLE_PACKAGES:
        return weight.dequantize()
    if not _is_readable(weight):
        raise UserError(
            f"the weight of a {type(layer).__name__} is stored as {kind} of {weight.dtype}, which can't be read; "
            "load the base in full precision"
        )
    return weight


def storage_of(layer: nn.Module) -> str:
    """How the weight is stored if it is quantised ("int8", "Params4bit", …), or "" for plain floating point."""
    if isinstance(layer, Quantised):
        return layer.kind
    weight = cast(Tensor, layer.weight)
    if type(weight) is nn.Parameter:
        return "" if weight.dtype in PLAIN_DTYPES else str(weight.dtype).removeprefix("torch.")
    return type(weight).__name__


def stored_weight(layer: nn.Module) -> Tensor:
    """The weight as it is stored, in any dtype."""
    return layer.codes if isinstance(layer, Quantised) else cast(Tensor, layer.weight)


def storage_device(layer: nn.Module) -> torch.device:
    """The device of the weight; of an offloaded one that of its copy."""
    stored, hook = stored_weight(layer), _offload_hook(layer)
    return cast(Tensor, hook.weights_map["weight"]).device if hook and hook.weights_map is not None else stored.device


def execution_device(layer: nn.Module) -> torch.device:
    """The device on which the layer runs, also if its weight is offloaded."""
    hook = _offload_hook(layer)
    return torch.device(hook.execution_device) if hook else stored_weight(layer).device


def _offload_hook(layer: nn.Module) -> Any:
    """accelerate's hook of a layer whose weight it has offloaded, or None."""
    return layer.__dict__.get("_hf_hook") if stored_weight(layer).is_meta else None


def has_weight(layer: nn.Module) -> bool:
    """Whether the weight can be read now, without loading an offloaded layer."""
    stored = stored_weight(layer)
    return not stored.is_meta and (isinstance(layer, Quantised) or _is_readable(stored))


def _is_readable(weight: Tensor) -> bool:
    known = type(weight).__name__ in READABLE_KINDS or _package(weight) in READABLE_PACKAGES
    return known or weight.is_floating_point()


def _package(weight: Tensor) -> str:
    return type(weight).__module__.partition(".")[0]


def compute_dtype(layer: nn.Module) -> torch.dtype:
    """The dtype in which the layer computes: that of autocast, of layerwise casting, or of its weight."""
    device = stored_weight(layer).device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    if (hooks := getattr(layer, "_diffusers_hook", None)) and (casting := hooks.get_hook("layerwise_casting")):
        return casting.compute_dtype
    if isinstance(layer, Quantised):
        return layer.weight_dtype
    dtype = cast(Tensor, layer.weight).dtype
    return dtype if dtype in PLAIN_DTYPES else torch.float32


@contextlib.contextmanager
def offloaded_weights(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Context manager that loads the weights of those modules that accelerate has offloaded."""
    hooks: list[tuple[Any, nn.Module]] = [(module.__dict__.get("_hf_hook"), module) for module in modules]
    hooked = [(hook, module) for hook, module in hooks if getattr(hook, "offload", False)]
    for hook, module in hooked:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for hook, module in hooked:
            hook.post_forward(module, None)


def adapted_output(
    layer: nn.Module, y: Tensor, x: Tensor, factors: LayerFactors, thin: Thinning | None = None
) -> Tensor:
    """The layer's output ``y`` for the input ``x``, with the update, the scale and the left factors applied."""
    if isinstance(layer, nn.Conv2d):
        return _adapted_convolution(layer, y, x, factors, thin)
    if factors.update:
        y = add_low_rank(y, x, factors.update, thin=thin)
    y = _scaled(y, factors.scale, factors.shift)
    return rotate(y, factors.left, factors.offset, thin) if factors.left else y


def _adapted_convolution(
    layer: nn.Conv2d, y: Tensor, x: Tensor, factors: LayerFactors, thin: Thinning | None
) -> Tensor:
    """``adapted_output`` of a convolution, whose factors are one update (see ``factors.compose``)."""
    up, down = cast(tuple[Tensor, Tensor], factors.update)
    kernels = down.unflatten(1, (layer.in_channels, *layer.kernel_size))
    hidden = F.conv2d(x, kernels, None, layer.stride, cast(Any, layer.padding), layer.dilation)
    if thin:
        hidden = thin(hidden.movedim(1, -1)).movedim(-1, 1)
    y = y + F.conv2d(hidden, up[:, :, None, None])
    scale, shift = (None if part is None else part[:, None, None] for part in (factors.scale, factors.shift))
    return _scaled(y, scale, shift)


def _scaled(y: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    if scale is None:
        return y
    return y * scale if shift is None else torch.addcmul(shift, y, scale)
