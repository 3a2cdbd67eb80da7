"""One number per weight, by which an adapter file recognises the base model that it was trained on."""

import functools

import torch
from torch import Tensor


def probe(weight: Tensor) -> float:
    """``⟨W, p⟩ / ‖W‖`` for a fixed pattern p of unit RMS.

    Rounding W to float16 or bfloat16 changes it by at most about 1e-3, fine-tuning the base model by more.
    """
    flat = weight.detach().cpu().float().flatten()
    return round(float(flat @ _pattern(flat.numel()) / flat.norm()), 6)


@functools.lru_cache(maxsize=16)  # a model's layers have few sizes, and the cosines dominate the cost
def _pattern(size: int) -> Tensor:
    return (torch.cos(torch.arange(size, dtype=torch.float64) * 2.399963) * 2**0.5).float()  # the golden angle
