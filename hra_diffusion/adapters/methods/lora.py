"""LoRA: ``W + (α/r) B A`` (arXiv 2106.09685), also rank-stabilised (2312.03732) and started by PiSSA (2404.02948)."""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from hra_diffusion.adapters.factors import LayerFactors
from hra_diffusion.adapters.initial_values import kaiming_uniform
from hra_diffusion.adapters.registry import Adapter, MethodConfig, PeftForm, register


class UpdateConfig(MethodConfig):
    """Options of the methods that add a scaled update to the weight."""

    alpha: float | None = Field(None, gt=0, description="The update is scaled by alpha / rank; empty: alpha = rank.")
    rank_stabilized: bool = Field(
        False, description="Scale the update by alpha / √rank (rsLoRA), so that high ranks learn as fast as low ones."
    )

    @property
    def scale(self) -> float:
        """The factor of the update: alpha / rank, or alpha / √rank (arXiv 2312.03732, theorem 3.2)."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


class LoRAConfig(UpdateConfig):
    """Options of LoRA."""

    init: Literal["kaiming", "pissa"] = Field(
        "kaiming",
        description="Initial factors: zero and Kaiming-uniform values, or the weight's largest singular values and "
        "vectors, of which the change is the update (PiSSA).",
    )


@register(
    "lora",
    config=LoRAConfig,
    title="LoRA",
    summary="Adds a low-rank update to each weight: the familiar baseline.",
    paper="arXiv 2106.09685",
    peft=PeftForm(
        "LORA",
        {"down": "lora_A.weight", "up": "lora_B.weight"},
        to_peft=lambda config: {
            "r": config.rank, "lora_alpha": config.alpha or config.rank, "use_rslora": config.rank_stabilized,
        },
    ),
)  # fmt: skip
class LoRA(Adapter):
    """``down`` is A (r, d_in), ``up`` is B (d_out, r); B starts at zero.

    With PiSSA both start at the weight's principal part ``s B₀ A₀``, with the scale s. B₀ and A₀ stay as ``start_up``
    and ``start_down``, and W is not changed: the update is ``s (B A − B₀ A₀)``, a LoRA of rank 2r.
    """

    def __init__(self, config: LoRAConfig, d_in: int, d_out: int, generator: Generator):
        super().__init__()
        self.scale = config.scale
        self.down = nn.Parameter(kaiming_uniform((config.rank, d_in), generator))
        self.up = nn.Parameter(torch.zeros(d_out, config.rank))
        self.pissa = config.init == "pissa"
        if self.pissa:
            self.start_down = nn.Parameter(self.down.detach().clone(), requires_grad=False)
            self.start_up = nn.Parameter(self.up.detach().clone(), requires_grad=False)

    @torch.no_grad()
    def start_from(self, weight: Callable[[], Tensor]) -> None:
        if self.pissa:
            up, down = principal_factors(weight().float(), len(self.down), self.scale)
            for parameter, value in ((self.up, up), (self.start_up, up), (self.down, down), (self.start_down, down)):
                parameter.copy_(value)

    def factors(self, parameters: Mapping[str, Tensor], strength: float = 1.0) -> LayerFactors:
        up, down, scale = parameters["up"], parameters["down"], strength * self.scale
        if not self.pissa:
            return LayerFactors(update=(scaled(up, scale), down))
        # (B − B₀) A + B₀ (A − A₀), which is exactly 0 at the start, in any precision
        start_up, start_down = parameters["start_up"], parameters["start_down"]
        both = torch.cat([up - start_up, start_up], dim=-1), torch.cat([down, down - start_down], dim=-2)
        return LayerFactors(update=(scaled(both[0], scale), both[1]))


def principal_factors(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """(up (d_out, r), down (r, d_in)) with ``scale · up · down`` the best approximation of this rank to the weight.

    Source: arXiv 2404.02948, equations 2 and 3, with the scale of PEFT's ``pissa_init``.
    """
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    root = (S[:rank] / scale).sqrt()
    return U[:, :rank] * root, root[:, None] * Vh[:rank]


def scaled(tensor: Tensor, scale: float) -> Tensor:
    """``scale · tensor``, without an operation at scale 1."""
    return tensor if scale == 1 else scale * tensor
