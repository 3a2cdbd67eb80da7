"""MoSLoRA: LoRA with a trainable r×r mixer between the factors, ``W + (α/r) B M A`` (arXiv 2406.11909)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from hra_diffusion.adapters.low_rank import kaiming_uniform, low_rank_forward, low_rank_weight, scaled_low_rank
from hra_diffusion.adapters.methods.lora import LoRAConfig
from hra_diffusion.adapters.registry import BaseForward, LowRank, register


class MoSLoRAConfig(LoRAConfig):
    """Options of MoSLoRA."""

    mixer: Literal["orthogonal", "kaiming"] = Field(
        "orthogonal", description="Initialisation of the mixer; the paper's images use orthogonal."
    )


@register(
    "moslora",
    config=MoSLoRAConfig,
    title="MoSLoRA",
    summary="LoRA whose subspaces are mixed by a small trainable matrix.",
    paper="arXiv 2406.11909",
)
class MoSLoRA(nn.Module):
    """``down`` is A (r, d_in), ``mixer`` M (r, r), ``up`` B (d_out, r). With M = 0 nothing trains; M = I is LoRA."""

    def __init__(self, config: MoSLoRAConfig, d_in: int, d_out: int, generator: Generator):
        super().__init__()
        self.scale = config.scale
        self.down = nn.Parameter(kaiming_uniform((config.rank, d_in), generator))
        self.mixer = nn.Parameter(initial_mixer(config.mixer, config.rank, generator))
        self.up = nn.Parameter(torch.zeros(d_out, config.rank))

    def forward(self, x: Tensor, base_forward: BaseForward, strength: float = 1.0) -> Tensor:
        return low_rank_forward(x, base_forward, self.up, self._mixed_down(), strength * self.scale)

    def adapted_weight(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        return low_rank_weight(weight, self.up, self._mixed_down(), strength * self.scale)

    def low_rank(self, weight: Tensor, strength: float = 1.0) -> LowRank:
        return scaled_low_rank(weight, self.up, self._mixed_down(), strength * self.scale)

    def _mixed_down(self) -> Tensor:
        """M A (r, d_in), with which MoSLoRA is a plain LoRA."""
        return self.mixer @ self.down


def initial_mixer(kind: str, rank: int, generator: Generator) -> Tensor:
    """Initial values of the mixer M (rank, rank)."""
    if kind == "orthogonal":
        return nn.init.orthogonal_(torch.empty(rank, rank), generator=generator)
    return kaiming_uniform((rank, rank), generator)
