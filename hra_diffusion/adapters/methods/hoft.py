"""HOFT: Householder orthogonal fine-tuning on both sides, ``Q_U W Q_V`` (arXiv 2505.16531).

The paper approximates the triangular inverse by ``S⁻¹ ≈ D⁻¹ − D⁻¹ A D⁻¹``, which is exact for r ≤ 2 only: for r ≥ 4 the
paper's paired initialisation does not start at the identity. The inverse here is exact, at the same cost;
``approximate_inverse`` reproduces the paper.
"""

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from hra_diffusion.adapters.registry import BaseForward, LowRank, register
from hra_diffusion.adapters.rotation import ReflectionConfig, Rotation


class HOFTConfig(ReflectionConfig):
    """Options of HOFT and SHOFT."""

    approximate_inverse: bool = Field(
        False, description="Use the paper's approximate inverse: not orthogonal, and not the base model at step 0."
    )


def starts_at_base(config: HOFTConfig) -> bool:
    """Whether the initial adapter is the identity; the approximate inverse is exact up to rank 2 only."""
    return not config.approximate_inverse or config.rank <= 2


@register(
    "hoft",
    config=HOFTConfig,
    title="HOFT",
    summary="Rotates each weight on both sides by chains of reflections.",
    paper="arXiv 2505.16531",
    starts_at_base=starts_at_base,
)
class HOFT(nn.Module):
    """``left.u`` (d_out, r) and ``right.u`` (d_in, r): the reflection vectors of Q_U and Q_V as columns."""

    def __init__(self, config: HOFTConfig, d_in: int, d_out: int, generator: Generator):
        super().__init__()
        form = "approximate" if config.approximate_inverse else "exact"
        self.left = Rotation(d_out, config.rank, generator, form)
        self.right = Rotation(d_in, config.rank, generator, form)

    def forward(
        self, x: Tensor, base_forward: BaseForward, strength: float = 1.0, scale: Tensor | None = None
    ) -> Tensor:
        return self.left(base_forward(self.right(x, strength)), strength, scale)

    def adapted_weight(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        return self.left(self.right.rotate_weight(weight, strength).mT, strength).mT

    def low_rank(self, weight: Tensor, strength: float = 1.0) -> LowRank:
        right = self.right.low_rank(weight, strength)
        up, down = (factor.to(weight.dtype) for factor in self.left.factors(weight.dtype, strength))
        rotated = weight + right.up @ right.down  # W Q_V
        return LowRank(torch.cat([up, right.up], dim=1), torch.cat([down @ rotated, right.down]))
