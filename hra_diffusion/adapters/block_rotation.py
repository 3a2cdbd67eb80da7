"""Orthogonal matrices made of small blocks by the Cayley transform, the building block of OFT and BOFT.

Sources: OFT (arXiv 2306.07280), OFTv2 (2506.19847), BOFT (2311.06243), as PEFT 0.21.2 implements them.
"""

from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from hra_diffusion.adapters.householder import own_precision
from hra_diffusion.adapters.registry import TRAINING_OPTIONS, MethodConfig


class BlockConfig(MethodConfig):
    """Options of the methods based on blocks. The rank is the size of a block."""

    refused: ClassVar[set[str]] = TRAINING_OPTIONS
    rank: int = Field(32, ge=2, le=256, description="Size of the blocks: the capacity of the adapter and its size.")

    @model_validator(mode="after")
    def _check_thinning(self) -> Self:
        if self.dropout or self.timestep_rank < 1:
            raise ValueError(
                "dropout and timestep_rank act on low-rank factors, which blocks don't have: leave them out"
            )
        return self

    @property
    def stages_of_blocks(self) -> int:
        """Number of butterfly stages."""
        return 1

    def misfit(self, d_in: int, d_out: int) -> str:
        """That blocks of this size don't divide the inputs, or ""."""
        stages = self.stages_of_blocks
        divided = d_in % (self.rank * 2 ** (stages - 1)) == 0 and (stages == 1 or self.rank % 2 == 0)
        reason = f"{d_in} inputs can't be divided into blocks of {self.rank} in {stages} stages; use another rank"
        return "" if divided else reason


def skew_blocks(vectors: Tensor, size: int) -> Tensor:
    """Skew-symmetric matrices (…, b, b) from their upper triangles (…, b(b − 1)/2)."""
    rows, columns = torch.triu_indices(size, size, 1, device=vectors.device)
    upper = vectors.new_zeros(*vectors.shape[:-1], size, size)
    upper[..., rows, columns] = vectors
    return upper - upper.mT


def cayley(skew: Tensor) -> Tensor:
    """The rotations ``(I − S)(I + S)⁻¹`` of skew-symmetric matrices (…, b, b), in float32 or wider."""
    with own_precision(skew.device):
        identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
        return torch.linalg.solve_ex(identity + skew, identity - skew, left=False).result


def cayley_neumann(skew: Tensor, terms: int) -> Tensor:
    """``(I + S)(I − S)⁻¹`` by the first terms of its series, ``I + 2S + 2S² + … + S^(terms − 1)``: nearly orthogonal.

    Source: OFTv2, with the last term halved as in PEFT.
    """
    with own_precision(skew.device):
        power = skew
        total = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device) + 2 * skew
        for _ in range(2, terms - 1):
            power = power @ skew
            total = total + 2 * power
        return total + power @ skew
