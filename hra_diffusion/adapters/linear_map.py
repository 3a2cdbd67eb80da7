"""Linear and convolution layers as one linear map: a weight matrix (d_out, d_in) applied to rows (…, d_in)."""

import functools
from collections.abc import Callable
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from hra_diffusion.adapters.quantization import Quantised
from hra_diffusion.adapters.registry import BaseForward, LowRank


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


def as_matrix(layer: nn.Module) -> Tensor:
    """The layer's weight as (d_out, d_in). A convolution's is flattened to (c_out, c_in·k·k)."""
    return cast(Tensor, layer.weight).flatten(1)


def base_forward(layer: nn.Module) -> BaseForward:
    """The product of rows (…, d_in) with the layer's weight (d_out, d_in), without bias."""
    return layer.matmul if isinstance(layer, Quantised) else functools.partial(F.linear, weight=as_matrix(layer))


def conv_as_linear(layer: nn.Module, x: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
    """Run the layer with ``project`` in place of the product with its weight, then add its bias.

    ``project`` maps rows (…, d_in) to (…, d_out). The rows of a linear layer are its input; those of a convolution are
    its input's patches, extracted with the layer's stride, padding and dilation.
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


def add_low_rank(layer: nn.Module, x: Tensor, y: Tensor, update: LowRank) -> None:
    """Turn ``y``, the layer's output for ``x``, into the output of the updated weight, in place."""
    up, down, scale = update
    if isinstance(layer, nn.Conv2d):
        kernels = down.unflatten(1, (layer.in_channels, *layer.kernel_size))
        hidden = F.conv2d(x, kernels, None, layer.stride, cast(Any, layer.padding), layer.dilation)
        y += F.conv2d(hidden, up[:, :, None, None])
    else:
        y += F.linear(F.linear(x, down), up)
    if scale is not None:  # the bias is not scaled
        bias = cast(Tensor | None, layer.bias)
        shape = (-1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
        y *= scale.view(shape)
        if bias is not None:
            y += ((1 - scale) * bias.to(y.dtype)).view(shape)
