"""HRA: Householder reflection adaptation, ``W H_1 … H_r`` (arXiv 2405.17484), in its three forms.

λ = 0: unconstrained reflections. λ > 0: a regulariser pulls the vectors towards orthogonality. λ = ∞: the vectors are
orthonormalised by Gram–Schmidt, ``W (I − 2 Û Ûᵀ)``, which never starts at the base model.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from hra_diffusion.adapters.factors import LayerFactors
from hra_diffusion.adapters.householder import orthogonality_defect
from hra_diffusion.adapters.registry import Adapter, PeftForm, register
from hra_diffusion.adapters.rotation import ReflectionConfig, Rotation


class HRAConfig(ReflectionConfig):
    """Options of HRA."""

    orthogonality: float = Field(
        0.0,
        ge=0,
        description="λ of the orthogonality regulariser; 0: none, inf: Gram–Schmidt (not the base model at step 0).",
    )
    orthogonality_over_layers: Literal["mean", "sum"] = Field(
        "mean",
        description="How the regulariser combines layers: mean keeps it below the denoising loss; sum is the paper's, "
        "about rank × layers × λ at the start.",
    )

    @property
    def orthonormal(self) -> bool:
        return math.isinf(self.orthogonality)

    @property
    def form(self) -> str:
        return "orthonormal" if self.orthonormal else "exact"


def penalty(config: HRAConfig, layers: Iterable["HRA"]) -> Tensor:
    """λ · mean (or sum) over layers of ``‖I − ÛᵀÛ‖²_F``, zero at λ = 0 and λ = ∞. With "sum", the paper's eq. 7.

    With equal pairs the term is about ``rank`` per layer at step 0 and its gradient separates the pairs, away from the
    base model. The mean keeps it below the denoising loss (0.008 at λ = 1e-3 and rank 8).
    """
    if config.orthogonality == 0 or config.orthonormal:
        return torch.zeros(())
    groups: dict[tuple[torch.Size, torch.device], list[Tensor]] = defaultdict(list)
    for layer in layers:
        groups[layer.right.u.shape, layer.right.u.device].append(layer.right.u)
    defects = torch.cat([orthogonality_defect(torch.stack(vectors)) for vectors in groups.values()])
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
class HRA(Adapter):
    """``right.u`` (d_in, r): the reflection vectors as columns."""

    def __init__(self, config: HRAConfig, d_in: int, d_out: int, generator: Generator):
        super().__init__()
        self.right = Rotation(d_in, config.rank, generator, config.form)

    def factors(self, parameters: Mapping[str, Tensor], strength: float = 1.0) -> LayerFactors:
        return LayerFactors(right=self.right.factors(parameters["right.u"], strength))
