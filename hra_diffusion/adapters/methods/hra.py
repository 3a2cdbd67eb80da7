"""HRA: Householder reflection adaptation, ``W H_1 … H_r`` (arXiv 2405.17484), in its three forms.

λ = 0: free reflections. λ > 0: a regulariser pulls the vectors towards orthogonality. λ = ∞: they are orthonormalised
by Gram–Schmidt, ``W (I − 2 Û Ûᵀ)``, which is never the base at step 0.
"""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from hra_diffusion.adapters.householder import orthogonality_defect
from hra_diffusion.adapters.parts import ReflectionConfig, Rotation, group_by_shape
from hra_diffusion.adapters.registry import Inner, LowRank, PeftForm, register


class HRAConfig(ReflectionConfig):
    """Rank and which of the three forms."""

    orthogonality: float = Field(
        0.0,
        ge=0,
        description="λ of the orthogonality regulariser; 0: none, inf: Gram–Schmidt (not the base at step 0).",
    )
    orthogonality_over_layers: Literal["mean", "sum"] = Field(
        "mean",
        description="mean keeps the term below the denoising loss; sum is the paper's form, about rank × layers × λ "
        "at the start.",
    )

    @property
    def orthonormal(self) -> bool:
        return math.isinf(self.orthogonality)


def penalty(config: HRAConfig, layers: Iterable["HRA"]) -> Tensor:
    """λ · mean (or sum) over layers of ``‖I − ÛᵀÛ‖²_F``; zero at λ = 0 and λ = ∞ (paper's eq. 7 with "sum").

    Equal pairs make the term about ``rank`` a layer at step 0 and its gradient pushes the pair apart, away from the
    base; the mean keeps that push below the denoising loss (at λ = 1e-3, rank 8: 0.008).
    """
    if config.orthogonality == 0 or config.orthonormal:
        return torch.zeros(())
    groups = group_by_shape(layer.right for layer in layers)
    defects = torch.cat([orthogonality_defect(torch.stack([rotation.u for rotation in group])) for group in groups])
    return config.orthogonality * (defects.mean() if config.orthogonality_over_layers == "mean" else defects.sum())


@register(
    "hra",
    config=HRAConfig,
    title="HRA",
    summary="Rotates each weight's input by a chain of reflections: half of LoRA's size, keeps what the base knows.",
    paper="arXiv 2405.17484",
    penalty=penalty,
    starts_at_base=lambda config: not config.orthonormal,
    peft=PeftForm(
        "HRA",
        {"right.u": "hra_u"},
        to_peft=lambda config: {"r": config.rank, "apply_GS": config.orthonormal},
        from_peft=lambda peft: {"rank": peft["r"], "orthogonality": math.inf if peft["apply_GS"] else 0.0},
    ),
)
class HRA(nn.Module):
    """``right.u`` (d_in, r): the reflection vectors as columns."""

    def __init__(self, config: HRAConfig, d_in: int, d_out: int, generator: Generator):
        super().__init__()
        self.right = Rotation(d_in, config.rank, generator, "orthonormal" if config.orthonormal else "exact")

    def forward(self, rows: Tensor, inner: Inner, strength: float = 1.0) -> Tensor:
        return inner(self.right(rows, strength))

    def adapted_weight(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        return self.right.transposed(weight, strength)

    def low_rank(self, weight: Tensor, strength: float = 1.0) -> LowRank:
        return self.right.update(weight, strength)
