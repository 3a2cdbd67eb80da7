"""Frozen linear and convolution layers whose weight is stored in 8 or 4 bits and unpacked for each use.

"int8": 127 steps up to the largest value of each output's row; relative RMS error about 1 %. "nf4": blocks of 64,
quantised to 16 quantiles of the normal distribution (QLoRA, arXiv 2305.14314); error about 9 %. Plain PyTorch works on
every device; bitsandbytes stores the same values, but on a CPU it first compiles code for every shape, for minutes.
As in ``layer.wrap``, a quantised layer is the same module with its class swapped. ``weight`` is the unpacked weight.
"""

import functools
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from hra_diffusion.adapters.probe import probe
from hra_diffusion.allocator import release_freed_memory

BLOCK = 64
SKIPPED = (
    "conv_in", "conv_out", "time_embedding", "add_embedding", "time_emb_proj",
    "x_embedder", "pos_embed", "time_text_embed", "time_guidance_embed", "norm_out",  # of transformers
)  # fmt: skip
"""Layers that are not quantised: they are small and affect everything. So is the last one of a transformer."""
LAST = "proj_out"


class Quantised(nn.Module):
    """Mixin of ``quantise`` for the class of a linear or convolution layer."""

    codes: Tensor
    scales: Tensor
    kind: str
    weight_shape: torch.Size
    weight_dtype: torch.dtype
    probe: float

    @property
    def weight(self) -> Tensor:
        """The unpacked weight, in its own shape and dtype. Writing to it has no effect."""
        return unpack(self.codes, self.scales, self.kind, self.weight_shape, self.weight_dtype)

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """The unpacked weight in ``dtype``."""
        return unpack(self.codes, self.scales, self.kind, self.weight_shape, dtype)

    def matmul(self, x: Tensor) -> Tensor:
        """Rows (…, d_in) times the weight as a matrix: (…, d_out)."""
        return cast(Tensor, _Linear.apply(x, self))

    def forward(self, x: Tensor) -> Tensor:
        bias = cast(Tensor | None, self.bias)
        if isinstance(self, nn.Conv2d):
            y = cast(Tensor, _Conv.apply(x, self))
            return y if bias is None else y + bias.to(y.dtype)[:, None, None]
        y = self.matmul(x)
        return y if bias is None else y + bias.to(y.dtype)


class _Linear(torch.autograd.Function):
    """``F.linear`` that unpacks the weight again in the backward pass instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Quantised) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight_in(x.dtype).flatten(1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (y,) = gradients
        return y @ ctx.layer.weight_in(y.dtype).flatten(1), None


class _Conv(torch.autograd.Function):
    """``F.conv2d`` that unpacks the weight again in the backward pass instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return F.conv2d(x, layer.weight_in(x.dtype), None, *_conv_arguments(layer))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (y,) = gradients
        weight = ctx.layer.weight_in(y.dtype)
        return conv2d_input(ctx.shape, weight, y, *_conv_arguments(ctx.layer)), None


def quantise(model: nn.Module, kind: str) -> None:
    """Quantise the weights of the model's linear and convolution layers to "int8" or "nf4", in place.

    Quantised weights are frozen.
    """
    for layer in list(_quantisable_layers(model)):
        weight = cast(Tensor, layer.weight).detach()
        del layer.weight
        for name, value in zip(("codes", "scales"), pack(weight.flatten(1), kind), strict=True):
            layer.register_buffer(name, value)
        layer.kind, layer.probe = kind, 0.0 if weight.is_meta else probe(weight)
        layer.weight_shape, layer.weight_dtype = weight.shape, weight.dtype
        layer.__class__ = _quantised_class(type(layer))
    release_freed_memory()  # the freed full weights fragment the heap


def storage(model: nn.Module) -> str:
    """Storage format of the model's weights: "full", "int8" or "nf4"."""
    return next((layer.kind for layer in model.modules() if isinstance(layer, Quantised)), "full")


def pack(matrix: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Quantise a weight (d_out, d_in) to codes and float32 scales.

    "int8" codes take one byte each and scales are per row; "nf4" codes take half a byte and scales are per block.
    """
    if kind == "int8":
        scales = _row_maxima(matrix.float()) / 127
        return (matrix / scales).round().to(torch.int8), scales
    blocks = F.pad(matrix.float().flatten(), (0, -matrix.numel() % BLOCK)).view(-1, BLOCK)
    scales, table = _row_maxima(blocks), quantiles().to(matrix.device)
    nearest = torch.bucketize(blocks / scales, (table[1:] + table[:-1]) / 2).to(torch.uint8)
    return nearest[:, 0::2] * 16 + nearest[:, 1::2], scales


def unpack(codes: Tensor, scales: Tensor, kind: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The weight of these codes and scales, in ``shape`` and ``dtype``."""
    if kind == "int8":
        return (codes.to(dtype) * scales.to(dtype)).view(shape)
    table = quantiles().to(codes.device, dtype)
    pairs = torch.cartesian_prod(table, table)  # one look-up for the two values of a byte
    values = F.embedding(codes.int(), pairs).flatten(1) * scales.to(dtype)
    return values.flatten()[: shape.numel()].view(shape)


def _row_maxima(rows: Tensor) -> Tensor:
    return rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)


def _quantisable_layers(model: nn.Module) -> Iterator[Any]:
    for path, module in model.named_modules():
        plain = type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)
        if plain and path != LAST and not any(part in SKIPPED for part in path.split(".")):
            yield module


def _conv_arguments(layer: Any) -> tuple[Any, Any, Any]:
    return layer.stride, layer.padding, layer.dilation


@functools.cache
def quantiles() -> Tensor:
    """NF4's 16 values from −1 to 1, including 0: quantiles of the normal distribution (QLoRA, equation 4)."""
    tail = 0.9677083  # 1 minus the mean of 1/30 and 1/32, as in QLoRA's code
    with torch.device("cpu"):
        above, below = (torch.special.ndtri(torch.linspace(tail, 0.5, n, dtype=torch.float64)) for n in (9, 8))
        values = torch.cat([-below[:-1], torch.zeros(1, dtype=torch.float64), above[:-1]]).sort().values
        return (values / values.max()).float()


@functools.cache
def _quantised_class(base: type[nn.Module]) -> type[nn.Module]:
    return type(f"Quantised{base.__name__}", (Quantised, base), {})
