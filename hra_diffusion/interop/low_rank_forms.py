"""LoRA, LoHa, LoKr, GLoRA, (IA)³ and full differences as the factors of a LoRA.

Each function takes the layer's weight and its tensors, and returns (up, down) in float64. Sources: LoRA (arXiv
2106.09685), PiSSA (2404.02948), OLoRA (2406.01775), LoHa (2108.06098), (IA)³ (2205.05638); LoKr, GLoRA and the names of
the tensors: LyCORIS (2309.14859).
"""

import math

import torch
from torch import Tensor

from hra_diffusion.adapters.factors import Factors
from hra_diffusion.interop.layer_tensors import (
    LayerTensors,
    LayerTensorsError,
    alpha_scale,
    check_shape,
    disagreement,
    full_rank_factors,
    in_float64,
    matrix_shape,
)
from hra_diffusion.interop.peft_settings import LINEAR_STARTS, RESIDUAL_STARTS, PeftSettings


def lora_factors(weight: Tensor, tensors: LayerTensors) -> Factors:
    """``scale · up · down``, minus the part that PiSSA or OLoRA moved from the base model into the factors."""
    up, down = tensors.get("up"), tensors.get("down")
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or up.shape[1] != _rank_of(down, tensors):
        raise LayerTensorsError(
            f"up {tuple(up.shape)} and down {tuple(down.shape)} have different ranks; get the file again"
        )
    if "mid" in tensors.by_part:  # three convolutions: 1×1, k×k, 1×1
        check_shape(weight, len(up), down.shape[1:].numel() * tensors.kernel("mid"))
        down = torch.einsum("ijkl,jc->ickl", tensors.get("mid"), down.flatten(1))
    scale = alpha_scale(tensors, up.shape[1])
    up, down = scale * up.flatten(1), down.flatten(1)
    start = str(tensors.settings.init_lora_weights).lower() if tensors.settings else ""
    if weight.ndim == 4 and start in LINEAR_STARTS:
        raise LayerTensorsError(
            f"its settings say init_lora_weights = {start}, which PEFT supports for linear layers only"
        )
    if start not in RESIDUAL_STARTS:
        return up, down
    start_up, start_down = _initial_factors(weight, start, up.shape[1], scale)
    return torch.cat([up, -start_up], dim=1), torch.cat([down, start_down])


def loha_factors(weight: Tensor, tensors: LayerTensors) -> Factors:
    """``(w1a w1b) ∘ (w2a w2b)`` as the row-wise and column-wise Kronecker products of the factors."""
    scale = alpha_scale(tensors, tensors.matrix("hada_w1_b").shape[0])
    _check_tucker(weight, tensors, tensors.has("hada_t"))
    names = [(f"hada_t{i}", f"hada_w{i}_a", f"hada_w{i}_b") for i in (1, 2)]
    if tensors.has("hada_t"):
        for parts in names:
            check_shape(weight, *_tucker_shape(tensors, *parts))
        first, second = (_tucker(tensors, *parts) for parts in names)
        return full_rank_factors(scale * first * second)
    (left1, right1), (left2, right2) = ((tensors.matrix(a), tensors.matrix(b)) for _, a, b in names)
    for left, right in ((left1, right1), (left2, right2)):
        check_shape(weight, len(left), right.shape[1])
    if len(right1) * len(right2) > min(matrix_shape(weight)):
        return full_rank_factors(scale * (left1 @ right1) * (left2 @ right2))
    up = torch.einsum("oi,oj->oij", left1, left2).flatten(1)
    down = torch.einsum("ic,jc->ijc", right1, right2).flatten(0, 1)
    return scale * up, down


def lokr_factors(weight: Tensor, tensors: LayerTensors) -> Factors:
    """``w1 ⊗ w2``, each of them full or in factors: ``(L₁R₁) ⊗ (L₂R₂) = (L₁ ⊗ L₂)(R₁ ⊗ R₂)``."""
    ranks = [tensors.shape(f"lokr_w{i}_b")[0] for i in (1, 2) if f"lokr_w{i}_b" in tensors.by_part]
    shapes = [_kronecker_shape(tensors, number) for number in (1, 2)]
    check_shape(weight, *(first * second for first, second in zip(*shapes, strict=True)))
    (up1, down1), (up2, down2) = _kronecker_factor(tensors, 1), _kronecker_factor(tensors, 2)
    if tensors.settings is not None and tensors.settings.r:
        _check_lokr(weight, tensors, tensors.settings, (len(up1), down1.shape[1]))
        scale = alpha_scale(tensors, ranks[0] if ranks else tensors.settings.r)  # PEFT scales full factors too
    else:
        scale = alpha_scale(tensors, ranks[0]) if ranks else 1.0
    if up1.shape[1] * up2.shape[1] > min(matrix_shape(weight)):
        return full_rank_factors(scale * torch.kron(up1 @ down1, up2 @ down2))
    return scale * torch.kron(up1, up2), torch.kron(down1, down2)


def full_factors(weight: Tensor, tensors: LayerTensors) -> Factors:
    """A full difference of the weight."""
    check_shape(weight, *tensors.shape("diff"))
    return full_rank_factors(tensors.get("diff").flatten(1))


def glora_factors(weight: Tensor, tensors: LayerTensors) -> Factors:
    """``γ (W A + B)`` with A and B of low rank and γ = alpha / rank. In a convolution A acts on the channels."""
    a1, a2, b1, b2 = (tensors.get(part).flatten(1) for part in ("glora_a1", "glora_a2", "glora_b1", "glora_b2"))
    scale, tucker = alpha_scale(tensors, len(a2)), "glora_bm" in tensors.by_part
    kernel = tensors.kernel("glora_bm") if tucker else 1
    check_shape(weight, len(b1), b2.shape[1] * kernel)
    if (len(a1), a2.shape[1]) != (weight.shape[1], weight.shape[1]):
        raise LayerTensorsError(
            f"a1 and a2 are for {len(a1)} and {a2.shape[1]} inputs, not {weight.shape[1]}: it is for another base"
        )
    if tucker:
        b2 = torch.einsum("mn...,nj->mj...", tensors.get("glora_bm"), b2).flatten(1)
    weight = in_float64(weight)
    if weight.ndim == 2:
        return scale * torch.cat([weight @ a1, b1], dim=1), torch.cat([a2, b2])
    mixed = torch.einsum("oi...,ij->oj...", weight, a1 @ a2)
    return full_rank_factors(scale * (mixed.flatten(1) + b1 @ b2))


def ia3_factors(weight: Tensor, tensors: LayerTensors) -> Factors:
    """The change ``W diag(w)`` for scales w of the inputs, ``diag(w) W`` for scales of the outputs."""
    scales = tensors.get("ia3").flatten()
    on_input = bool(tensors.get("on_input").item())
    if len(scales) != weight.shape[on_input]:
        raise LayerTensorsError(f"{len(scales)} scales for {weight.shape[on_input]} values: it is for another base")
    shape = (1, -1) if on_input else (-1, 1)
    return full_rank_factors((in_float64(weight) * scales.reshape(*shape, *[1] * (weight.ndim - 2))).flatten(1))


def _rank_of(down: Tensor, tensors: LayerTensors) -> int:
    return tensors.get("mid").shape[0] if "mid" in tensors.by_part else down.shape[0]


def _initial_factors(weight: Tensor, name: str, rank: int, scale: float) -> Factors:
    """The initial factors of PiSSA or OLoRA, computed from the base weight as PEFT does when it loads such a folder."""
    if name == "pissa":
        left, values, right = torch.linalg.svd(in_float64(weight), full_matrices=False)
        return left[:, :rank] * values[:rank], right[:rank]
    q, r = torch.linalg.qr(in_float64(weight))
    return scale * q[:, :rank], r[:rank]


def _check_tucker(weight: Tensor, tensors: LayerTensors, tucker: bool) -> None:
    """Raise LayerTensorsError if PEFT's settings imply the other form for a convolution."""
    if tensors.settings is None or weight.ndim == 2 or weight.shape[2:] == (1, 1):
        return
    if tensors.settings.use_effective_conv2d != tucker:
        raise disagreement("use_effective_conv2d", not tucker, tucker)


def _check_lokr(weight: Tensor, tensors: LayerTensors, settings: PeftSettings, first: tuple[int, int]) -> None:
    """Raise LayerTensorsError if the settings imply other factors in PEFT's ``LoKrLayer``.

    ``first`` is the shape of the first factor.
    """
    expected = tuple(_first_factor(size, settings.decompose_factor) for size in weight.shape[:2])
    if first != expected:
        raise disagreement("decompose_factor", settings.decompose_factor, f"{first}, not {expected}")
    rank, second = settings.r or 1, max(weight.shape[0] // first[0], weight.shape[1] // first[1])
    if (settings.decompose_both and rank < max(first) / 2) != ("lokr_w1_a" in tensors.by_part):
        raise disagreement("decompose_both", settings.decompose_both, not settings.decompose_both)
    if (rank < second / 2) != ("lokr_w2_a" in tensors.by_part):
        raise disagreement("r", rank, "another one, by their second factor")
    if "lokr_w2_a" in tensors.by_part:
        _check_tucker(weight, tensors, "lokr_t2" in tensors.by_part)


def _first_factor(size: int, factor: int) -> int:
    """The first of the two factors into which PEFT splits a dimension."""
    if factor > 0 and size % factor == 0:
        return factor
    divisors = (d for d in range(1, math.isqrt(size) + 1) if size % d == 0 and (factor == -1 or d <= factor))
    return max(divisors, default=1)


def _kronecker_shape(tensors: LayerTensors, number: int) -> tuple[int, int]:
    full, left, right = (f"lokr_w{number}{end}" for end in ("", "_a", "_b"))
    if full in tensors.by_part:
        return tensors.shape(full)
    if number == 2 and "lokr_t2" in tensors.by_part:
        return _tucker_shape(tensors, "lokr_t2", left, right)
    return len(tensors.matrix(left)), tensors.shape(right)[1]


def _kronecker_factor(tensors: LayerTensors, number: int) -> Factors:
    full, left, right = (f"lokr_w{number}{end}" for end in ("", "_a", "_b"))
    if full in tensors.by_part:
        return full_rank_factors(tensors.get(full).flatten(1))
    if number == 2 and "lokr_t2" in tensors.by_part:
        return full_rank_factors(_tucker(tensors, "lokr_t2", left, right))
    return tensors.get(left), tensors.get(right).flatten(1)


def _tucker_shape(tensors: LayerTensors, core: str, left: str, right: str) -> tuple[int, int]:
    return tensors.matrix(left).shape[1], tensors.matrix(right).shape[1] * tensors.kernel(core)


def _tucker(tensors: LayerTensors, core: str, left: str, right: str) -> Tensor:
    """The change of a convolution (c_out, c_in·k·k) from LyCORIS' Tucker decomposition."""
    return (
        torch.einsum("ijkl,jr,ip->prkl", tensors.get(core), tensors.get(right), tensors.get(left))
        .flatten(1)
        .contiguous()
    )
