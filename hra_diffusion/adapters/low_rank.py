"""Low-rank updates ``W + scale · up · down``: initial values, forward pass, merged weight, composition."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from hra_diffusion.adapters import householder
from hra_diffusion.adapters.registry import AdapterModule, BaseForward, LowRank


def kaiming_uniform(shape: tuple[int, int], generator: Generator) -> Tensor:
    """Kaiming-uniform values with a = √5 over the second dimension, as in LoRA, HRA and PEFT."""
    return nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)


def low_rank_forward(x: Tensor, base_forward: BaseForward, up: Tensor, down: Tensor, scale: float) -> Tensor:
    """``base_forward(x) + scale · x · downᵀ · upᵀ`` for up (d_out, r) and down (r, d_in)."""
    hidden = F.linear(x, down.to(x.dtype))
    return householder.plus_product(base_forward(x), hidden, up.mT.to(x.dtype), scale)


def low_rank_weight(weight: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    """``weight + scale · up · down``, in the weight's dtype."""
    return weight + (scale * (up @ down)).to(weight.dtype)


def scaled_low_rank(weight: Tensor, up: Tensor, down: Tensor, scale: float) -> LowRank:
    """The update with ``scale`` multiplied into ``up``, in the weight's dtype."""
    return LowRank((scale * up).to(weight.dtype), down.to(weight.dtype))


def compose(weight: Tensor, adapters: Sequence[tuple[AdapterModule, float]]) -> LowRank:
    """Adapters with their strengths, applied in order, as one update of ``weight`` (d_out, d_in)."""
    up, down, scale = adapters[0][0].low_rank(weight, adapters[0][1])
    for (previous, previous_strength), (adapter, strength) in pairwise(adapters):
        weight = previous.adapted_weight(weight, previous_strength)
        update = adapter.low_rank(weight, strength)
        up = torch.cat([up, update.up if scale is None else update.up / scale[:, None]], dim=1)
        down = torch.cat([down, update.down])
        if update.scale is not None:
            scale = update.scale if scale is None else scale * update.scale
    return LowRank(up, down, scale)
