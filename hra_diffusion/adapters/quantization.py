"""Frozen linear and conv layers whose weight is stored in 8 or 4 bits and unpacked only while it is used.

"int8": each output's row by its largest value in 127 steps, a weight off by about 1 % (RMS). "nf4": blocks of 64 on
16 quantiles of a normal distribution (QLoRA, arXiv 2305.14314), off by about 9 %. In plain PyTorch, so on every device:
bitsandbytes stores the same numbers, but on a CPU it compiles code for every shape of a layer first, for minutes.
As with hosting (layer.py) a layer stays the module it was with its class swapped; ``weight`` reads as the unpacked one.
"""

import functools
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from hra_diffusion.adapters.fingerprint import probe
from hra_diffusion.allocator import release_freed_memory

BLOCK = 64
KEPT = ("conv_in", "conv_out", "time_embedding", "add_embedding", "time_emb_proj")
"""Layers that stay as they are: small ones through which everything passes."""


class Quantised(nn.Module):
    """Mixed into the class of a linear or conv layer by ``quantise``."""

    codes: Tensor
    scales: Tensor
    kind: str
    full: tuple[torch.Size, torch.dtype]
    probe: float

    @property
    def weight(self) -> Tensor:
        """The weight, unpacked, in its own shape and precision. Writing to it changes nothing."""
        return unpack(self.codes, self.scales, self.kind, *self.full)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """The weight for a product in ``dtype``."""
        return unpack(self.codes, self.scales, self.kind, self.full[0], dtype)

    def rows(self, x: Tensor) -> Tensor:
        """Rows (…, d_in) times the weight as a matrix: (…, d_out)."""
        return cast(Tensor, _Rows.apply(x, self))

    def forward(self, x: Tensor) -> Tensor:
        bias = cast(Tensor | None, self.bias)
        if isinstance(self, nn.Conv2d):
            y = cast(Tensor, _Conv.apply(x, self))
            return y if bias is None else y + bias.to(y.dtype)[:, None, None]
        y = self.rows(x)
        return y if bias is None else y + bias.to(y.dtype)


class _Rows(torch.autograd.Function):
    """Autograd would keep the unpacked weight for the backward pass; this unpacks it a second time instead."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Quantised) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.unpacked(x.dtype).flatten(1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (y,) = gradients
        return y @ ctx.layer.unpacked(y.dtype).flatten(1), None


class _Conv(torch.autograd.Function):
    """The same for a convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return F.conv2d(x, layer.unpacked(x.dtype), None, *_geometry(layer))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (y,) = gradients
        weight = ctx.layer.unpacked(y.dtype)
        return conv2d_input(ctx.shape, weight, y, *_geometry(ctx.layer)), None


def quantise(model: nn.Module, kind: str) -> None:
    """Store the weights of the model's linear and conv layers as "int8" or "nf4", in place; they are frozen by it."""
    for layer in list(_layers(model)):
        weight = cast(Tensor, layer.weight).detach()
        del layer.weight
        for name, value in zip(("codes", "scales"), pack(weight.flatten(1), kind), strict=True):
            layer.register_buffer(name, value)
        layer.kind, layer.full, layer.probe = kind, (weight.shape, weight.dtype), _probe(weight)
        layer.__class__ = _quantised(type(layer))
    release_freed_memory()  # the full weights leave holes between the packed ones


def storage(model: nn.Module) -> str:
    """How the model's weights are stored: "full", "int8" or "nf4"."""
    return next((layer.kind for layer in model.modules() if isinstance(layer, Quantised)), "full")


def pack(matrix: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Codes and scales (float32) of a weight (d_out, d_in): a byte each in rows, or half a byte in blocks."""
    if kind == "int8":
        scales = _largest(matrix.float()) / 127
        return (matrix / scales).round().to(torch.int8), scales
    blocks = F.pad(matrix.float().flatten(), (0, -matrix.numel() % BLOCK)).view(-1, BLOCK)
    scales, table = _largest(blocks), quantiles().to(matrix.device)
    nearest = torch.bucketize(blocks / scales, (table[1:] + table[:-1]) / 2).to(torch.uint8)
    return nearest[:, 0::2] * 16 + nearest[:, 1::2], scales


def unpack(codes: Tensor, scales: Tensor, kind: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The weight of these codes and scales, in its shape."""
    if kind == "int8":
        return (codes.to(dtype) * scales.to(dtype)).view(shape)
    table = quantiles().to(codes.device, dtype)
    pairs = torch.cartesian_prod(table, table)  # both weights of a byte in one look-up
    values = F.embedding(codes.int(), pairs).flatten(1) * scales.to(dtype)
    return values.flatten()[: shape.numel()].view(shape)


def _largest(rows: Tensor) -> Tensor:
    return rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)


def _layers(model: nn.Module) -> Iterator[Any]:
    for path, module in model.named_modules():
        plain = type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)
        if plain and not any(part in KEPT for part in path.split(".")):
            yield module


def _probe(weight: Tensor) -> float:
    return 0.0 if weight.is_meta else probe(weight)


def _geometry(layer: Any) -> tuple[Any, Any, Any]:
    return layer.stride, layer.padding, layer.dilation


@functools.cache
def quantiles() -> Tensor:
    """NF4's 16 values from −1 to 1, zero among them: quantiles of a normal distribution (QLoRA's equation 4)."""
    tail = 0.9677083  # half of 1/15 and of 1/16 away from 1, on the average; QLoRA's code
    with torch.device("cpu"):
        above, below = (torch.special.ndtri(torch.linspace(tail, 0.5, n, dtype=torch.float64)) for n in (9, 8))
        values = torch.cat([-below[:-1], torch.zeros(1, dtype=torch.float64), above[:-1]]).sort().values
        return (values / values.max()).float()


@functools.cache
def _quantised(base: type[nn.Module]) -> type[nn.Module]:
    return type(f"Quantised{base.__name__}", (Quantised, base), {})
