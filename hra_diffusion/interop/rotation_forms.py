"""HRA, OFT, diagonal OFT and BOFT as the factors of a LoRA.

Each function takes the layer's weight and its tensors, and returns (up, down) in float64. Sources: HRA (arXiv
2405.17484), OFT (2306.07280), BOFT (2311.06243), as PEFT, LyCORIS and OneTrainer store them.
"""

import math

import torch
from torch import Tensor

from hra_diffusion.adapters import householder
from hra_diffusion.adapters.block_rotation import cayley
from hra_diffusion.adapters.factors import Factors, LayerFactors, adapted_weight
from hra_diffusion.interop.layer_tensors import (
    LayerTensors,
    LayerTensorsError,
    check_rank,
    check_shape,
    disagreement,
    full_rank_factors,
    in_float64,
    matrix_shape,
)
from hra_diffusion.interop.peft_settings import PeftSettings


def hra_factors(weight: Tensor, tensors: LayerTensors) -> Factors:
    """``W H₁ … H_r − W`` for any number of reflections."""
    u, inputs = tensors.matrix("hra_u"), matrix_shape(weight)[1]
    if len(u) != inputs or u.shape[1] > inputs:
        raise LayerTensorsError(
            f"its {u.shape[1]} reflections of {len(u)} inputs don't fit {inputs} inputs: it is for another base"
        )
    check_rank(tensors, u.shape[1])
    orthonormal = tensors.settings is not None and tensors.settings.apply_GS
    chain = householder.gram_schmidt_chain if orthonormal else householder.reflection_chain
    up, down = householder.low_rank_factors(*chain(u))
    return in_float64(weight).flatten(1) @ up, down


def oft_factors(weight: Tensor, tensors: LayerTensors) -> Factors:
    """``W Rᵀ − W`` for a block-diagonal R, each block the Cayley transform of a skew-symmetric matrix.

    For PEFT's OFT, and for OneTrainer's, whose files have no settings and may be scaled (``modules/module/
    LoRAModule.py`` and ``oft_utils.py`` at 23df3832).
    """
    settings, vectors = tensors.settings or PeftSettings(peft_type="OFT"), tensors.matrix("oft_R")
    inputs = matrix_shape(weight)[1]
    number, size = len(vectors), (1 + math.isqrt(1 + 8 * vectors.shape[1])) // 2
    count = inputs // size
    if inputs % size or number not in (1, count):
        raise LayerTensorsError(f"{number} blocks of {size} don't add up to {inputs} inputs: it is for another base")
    _check_oft(tensors, inputs, number, size)
    matrix, skew = in_float64(weight).flatten(1), _skew(vectors, size)
    if "scaled_oft" in tensors.by_part:
        skew = skew / (2 * math.sqrt(size - 1))
    if settings.coft:
        norms = skew.norm(dim=(1, 2), keepdim=True)
        skew = skew * (settings.eps / math.sqrt(number) / norms.clamp(min=1e-30)).clamp(max=1)
    rotations = _cayley(skew, settings).expand(count, -1, -1)
    if tensors.settings is not None or weight.ndim == 2:  # OneTrainer multiplies a convolution's weight by R, not by Rᵀ
        rotations = rotations.mT
    rotated = torch.einsum("onb,nbc->onc", matrix.unflatten(1, (-1, size)), rotations)
    return full_rank_factors(rotated.flatten(1) - matrix)


def boft_factors(weight: Tensor, tensors: LayerTensors) -> Factors:
    """``diag(s) W Rᵀ − W`` for PEFT's BOFT: R is a product of butterfly stages ``boft_R`` (m, n, b, b)."""
    blocks, scale = tensors.get("boft_R"), tensors.get("boft_s").flatten()
    if blocks.ndim != 4 or blocks.shape[2] != blocks.shape[3]:
        raise LayerTensorsError(f"boft_R is {tuple(blocks.shape)}, not stages of blocks; get the folder again")
    stages, number, size, _ = blocks.shape
    check_shape(weight, len(scale), number * size)
    if stages > number.bit_length() or number % 2 ** (stages - 1) or (stages > 1 and size % 2):
        raise LayerTensorsError(f"its {number} blocks of {size} can't make {stages} stages; get the folder again")
    _check_boft(tensors, stages, number, size)
    matrix = in_float64(weight).flatten(1)
    rotations = cayley((blocks - blocks.mT) / 2)
    return full_rank_factors(adapted_weight(matrix, LayerFactors(blocks=rotations, scale=scale)) - matrix)


def diagonal_oft_factors(weight: Tensor, tensors: LayerTensors) -> Factors:
    """Rotated and then rescaled outputs, minus W.

    For LyCORIS' diag-OFT and kohya's OFT (blocks (n, b, b)), and for LyCORIS' BOFT (stages (m, n, b, b)).
    """
    blocks = tensors.get("oft_blocks")
    most = len(weight).bit_length()  # each stage doubles the distance of the rows that it mixes
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2] or (blocks.ndim == 4 and len(blocks) > most):
        raise LayerTensorsError(
            f"oft_blocks are {tuple(blocks.shape)}, not blocks of one or more stages; get the file again"
        )
    check_shape(weight, blocks.shape[-3] * blocks.shape[-2], matrix_shape(weight)[1])
    matrix = in_float64(weight).flatten(1)
    skew = blocks - blocks.mT
    limit = tensors.by_part["alpha"].item() * len(matrix) if "alpha" in tensors.by_part else 0
    if limit > 0:
        skew = skew * min(1, limit / (skew.norm().item() + 1e-8))
    identity = torch.eye(blocks.shape[-1], dtype=blocks.dtype)
    rotations = torch.linalg.solve(identity - skew, identity + skew, left=False)
    rotated = _butterfly(rotations, matrix) if blocks.ndim == 4 else _in_blocks(rotations.mT, matrix)
    if "rescale" in tensors.by_part:
        rotated = tensors.get("rescale").reshape(-1, 1) * rotated
    return full_rank_factors(rotated - matrix)


def _check_oft(tensors: LayerTensors, inputs: int, number: int, size: int) -> None:
    """Raise LayerTensorsError if the settings imply other blocks in PEFT's ``OFTLayer``."""
    if (settings := tensors.settings) is None:
        return
    if bool(settings.r) == bool(settings.oft_block_size):
        raise LayerTensorsError(f"its settings say r = {settings.r} and oft_block_size = {settings.oft_block_size}")
    for name, expected, found in (("r", settings.r, inputs // size), ("oft_block_size", settings.oft_block_size, size)):
        if expected and _divisor_near(inputs, expected) != found:
            raise disagreement(name, expected, found)
    if number != (1 if settings.block_share else inputs // size):
        raise disagreement("block_share", settings.block_share, not settings.block_share)


def _check_boft(tensors: LayerTensors, stages: int, number: int, size: int) -> None:
    """Raise LayerTensorsError if the settings imply other blocks in PEFT's ``BOFTLayer``."""
    if (settings := tensors.settings) is None:
        return
    given = {"boft_block_size": (settings.boft_block_size, size), "boft_block_num": (settings.boft_block_num, number)}
    if bool(settings.boft_block_size) == bool(settings.boft_block_num):
        raise LayerTensorsError(
            "its settings say " + " and ".join(f"{name} = {own}" for name, (own, _) in given.items())
        )
    for name, (expected, found) in given.items():
        if expected and expected != found:
            raise disagreement(name, expected, found)
    if stages not in (1, settings.boft_n_butterfly_factor):  # 1 without PEFT's CUDA extension, whatever the settings
        raise disagreement("boft_n_butterfly_factor", settings.boft_n_butterfly_factor, stages)


def _divisor_near(size: int, target: int) -> int:
    """The divisor of ``size`` nearest to ``target``, the lower one of two, as PEFT chooses it."""
    if target >= size:
        return size
    return min((d for d in range(1, size + 1) if size % d == 0), key=lambda d: (abs(d - target), d))


def _skew(vectors: Tensor, size: int) -> Tensor:
    """Skew-symmetric blocks (n, b, b) from their upper triangles (n, b(b−1)/2)."""
    skew = torch.zeros(len(vectors), size, size, dtype=vectors.dtype)
    rows, columns = torch.triu_indices(size, size, 1)
    skew[:, rows, columns] = vectors
    return skew - skew.mT


def _cayley(skew: Tensor, settings: PeftSettings) -> Tensor:
    """Blocks (n, b, b) of PEFT's OFT: ``(I − S)(I + S)⁻¹``, or its truncated series, which is PEFT's default."""
    identity = torch.eye(skew.shape[1], dtype=skew.dtype)
    if not settings.use_cayley_neumann:
        return torch.linalg.solve(identity + skew, identity - skew, left=False)
    terms = settings.num_cayley_neumann_terms
    terms = 4 if terms == 3 else terms  # as PEFT computes it
    result, power = identity.repeat(len(skew), 1, 1), identity
    for number in range(1, terms):
        power = power @ skew
        result = result + (1 if number == terms - 1 and number > 2 else 2) * power
    return result


def _in_blocks(rotations: Tensor, rows: Tensor) -> Tensor:
    """Multiply each block of ``rows`` (n·b, d) by its rotation (n, b, b)."""
    return torch.einsum("nij,njd->nid", rotations, rows.unflatten(0, (-1, rotations.shape[-1]))).flatten(0, 1)


def _butterfly(stages: Tensor, rows: Tensor) -> Tensor:
    """Apply butterfly stages (m, n, b, b) to ``rows`` (n·b, d). Stage i rotates rows that are 2^i·b/2 apart."""
    for number, rotations in enumerate(stages):
        stride = 2**number * rotations.shape[-1] // 2
        paired = rows.unflatten(0, (-1, 2, stride)).transpose(1, 2).flatten(0, 2)
        rows = _in_blocks(rotations, paired).unflatten(0, (-1, stride, 2)).transpose(1, 2).flatten(0, 2)
    return rows
