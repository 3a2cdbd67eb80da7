"""MoSLoRA: LoRA with a trainable r×r mixer between the factors, ``W + (α/r) B M A`` (arXiv 2406.11909)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from hra_diffusion.adapters.methods.lora import LoRAConfig
from hra_diffusion.adapters.parts import kaiming, low_rank_rows, low_rank_update, low_rank_weight
from hra_diffusion.adapters.registry import Inner, LowRank, register


class MoSLoRAConfig(LoRAConfig):
    """LoRA's options and the mixer's start."""

    mixer: Literal["orthogonal", "kaiming"] = Field(
        "orthogonal", description="How the mixer starts; the paper's pictures use orthogonal."
    )


@register(
    "moslora",
    config=MoSLoRAConfig,
    title="MoSLoRA",
    summary="LoRA whose subspaces are mixed by a small trainable matrix.",
    paper="arXiv 2406.11909",
)
class MoSLoRA(nn.Module):
    """``down`` A (r, d_in), ``mixer`` M (r, r), ``up`` B (d_out, r). M = 0 could never train, M = I is about LoRA."""

    def __init__(self, config: MoSLoRAConfig, d_in: int, d_out: int, generator: Generator):
        super().__init__()
        self.scale = config.scale
        self.down = nn.Parameter(kaiming((config.rank, d_in), generator))
        self.mixer = nn.Parameter(start_mixer(config.mixer, config.rank, generator))
        self.up = nn.Parameter(torch.zeros(d_out, config.rank))

    def forward(self, rows: Tensor, inner: Inner, strength: float = 1.0) -> Tensor:
        return low_rank_rows(rows, inner, self._mixed_down(), self.up, strength * self.scale)

    def adapted_weight(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        return low_rank_weight(weight, self._mixed_down(), self.up, strength * self.scale)

    def low_rank(self, weight: Tensor, strength: float = 1.0) -> LowRank:
        return low_rank_update(weight, self._mixed_down(), self.up, strength * self.scale)

    def _mixed_down(self) -> Tensor:
        """M A (r, d_in): with it MoSLoRA is a plain LoRA, for inference and for export."""
        return self.mixer @ self.down


def start_mixer(kind: str, rank: int, generator: Generator) -> Tensor:
    """The mixer M (rank, rank) at the start of training."""
    if kind == "orthogonal":
        return nn.init.orthogonal_(torch.empty(rank, rank), generator=generator)
    return kaiming((rank, rank), generator)
