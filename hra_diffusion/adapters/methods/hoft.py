"""HOFT: Householder orthogonal fine-tuning on both sides, ``Q_U W Q_V`` (arXiv 2505.16531).

The paper approximates the triangular inverse by ``S⁻¹ ≈ D⁻¹ − D⁻¹ A D⁻¹``, which is exact for r ≤ 2 only: for r ≥ 4 the
paper's paired initialisation does not start at the identity. The inverse here is exact, at the same cost;
``approximate_inverse`` reproduces the paper.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Generator, Tensor

from hra_diffusion.adapters.factors import LayerFactors
from hra_diffusion.adapters.registry import Adapter, register
from hra_diffusion.adapters.rotation import ReflectionConfig, Rotation


class HOFTConfig(ReflectionConfig):
    """Options of HOFT and SHOFT."""

    approximate_inverse: bool = Field(
        False, description="Use the paper's approximate inverse: not orthogonal, and not the base model at step 0."
    )

    @property
    def form(self) -> str:
        return "approximate" if self.approximate_inverse else "exact"


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
class HOFT(Adapter):
    """``left.u`` (d_out, r) and ``right.u`` (d_in, r): the reflection vectors of Q_U and Q_V as columns."""

    def __init__(self, config: HOFTConfig, d_in: int, d_out: int, generator: Generator):
        super().__init__()
        self.left = Rotation(d_out, config.rank, generator, config.form)
        self.right = Rotation(d_in, config.rank, generator, config.form)

    def factors(self, parameters: Mapping[str, Tensor], strength: float = 1.0) -> LayerFactors:
        left, right = parameters["left.u"], parameters["right.u"]
        if left.shape == right.shape:  # both sides together
            ups, downs = self.left.factors(torch.stack([left, right]), strength)
            return LayerFactors(right=(ups[1], downs[1]), left=(ups[0], downs[0]))
        return LayerFactors(right=self.right.factors(right, strength), left=self.left.factors(left, strength))
