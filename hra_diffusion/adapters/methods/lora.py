"""LoRA: ``W + (α/r) B A`` (arXiv 2106.09685)."""

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from hra_diffusion.adapters.parts import kaiming, low_rank_rows, low_rank_update, low_rank_weight
from hra_diffusion.adapters.registry import Inner, LowRank, MethodConfig, PeftForm, register


class LoRAConfig(MethodConfig):
    """Rank and scale of the update."""

    alpha: float | None = Field(
        None, gt=0, description="The update is scaled by alpha / rank; empty means alpha = rank."
    )

    @property
    def scale(self) -> float:
        """What the update is multiplied by: alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@register(
    "lora",
    config=LoRAConfig,
    title="LoRA",
    summary="Adds a low-rank update to each weight: the familiar baseline.",
    paper="arXiv 2106.09685",
    peft=PeftForm(
        "LORA",
        {"down": "lora_A.weight", "up": "lora_B.weight"},
        to_peft=lambda config: {"r": config.rank, "lora_alpha": config.alpha or config.rank},
    ),
)
class LoRA(nn.Module):
    """``down`` is A (r, d_in), ``up`` is B (d_out, r); B starts at zero."""

    def __init__(self, config: LoRAConfig, d_in: int, d_out: int, generator: Generator):
        super().__init__()
        self.scale = config.scale
        self.down = nn.Parameter(kaiming((config.rank, d_in), generator))
        self.up = nn.Parameter(torch.zeros(d_out, config.rank))

    def forward(self, rows: Tensor, inner: Inner, strength: float = 1.0) -> Tensor:
        return low_rank_rows(rows, inner, self.down, self.up, strength * self.scale)

    def adapted_weight(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        return low_rank_weight(weight, self.down, self.up, strength * self.scale)

    def low_rank(self, weight: Tensor, strength: float = 1.0) -> LowRank:
        return low_rank_update(weight, self.down, self.up, strength * self.scale)
