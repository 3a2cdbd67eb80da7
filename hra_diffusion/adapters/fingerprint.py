"""One number a weight, by which an adapter's file tells the base it was trained on from others."""

import functools

import torch
from torch import Tensor


def probe(weight: Tensor) -> float:
    """``⟨W, p⟩ / ‖W‖`` for a fixed pattern p: one number that rounding hardly moves and other weights do."""
    flat = weight.detach().cpu().float().flatten()
    return round(float(flat @ _pattern(flat.numel()) / flat.norm()), 6)


@functools.lru_cache(maxsize=16)  # a model's layers have few sizes, and cosines cost more than all the rest
def _pattern(size: int) -> Tensor:
    return (torch.cos(torch.arange(size, dtype=torch.float64) * 2.399963) * 2**0.5).float()  # the golden angle
