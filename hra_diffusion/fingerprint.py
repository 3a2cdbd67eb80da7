"""One number a weight, by which an adapter's file tells the base it was trained on from others."""

import torch
from torch import Tensor


def probe(weight: Tensor) -> float:
    """``⟨W, p⟩ / ‖W‖`` for a fixed pattern p: one number that rounding hardly moves and other weights do."""
    flat = weight.detach().cpu().double().flatten()
    pattern = torch.cos(torch.arange(flat.numel(), dtype=torch.float64) * 2.399963) * 2**0.5  # the golden angle
    return round(float(flat @ pattern / flat.norm()), 6)
