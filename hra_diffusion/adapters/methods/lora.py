"""LoRA: ``W + (α/r) B A`` (arXiv 2106.09685)."""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from hra_diffusion.adapters.factors import LayerFactors
from hra_diffusion.adapters.initial_values import kaiming_uniform
from hra_diffusion.adapters.registry import Adapter, MethodConfig, PeftForm, register


class LoRAConfig(MethodConfig):
    """Options of LoRA."""

    alpha: float | None = Field(None, gt=0, description="The update is scaled by alpha / rank; empty: alpha = rank.")

    @property
    def scale(self) -> float:
        """The factor of the update, alpha / rank."""
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
class LoRA(Adapter):
    """``down`` is A (r, d_in), ``up`` is B (d_out, r); B starts at zero."""

    def __init__(self, config: LoRAConfig, d_in: int, d_out: int, generator: Generator):
        super().__init__()
        self.scale = config.scale
        self.down = nn.Parameter(kaiming_uniform((config.rank, d_in), generator))
        self.up = nn.Parameter(torch.zeros(d_out, config.rank))

    def factors(self, parameters: Mapping[str, Tensor], strength: float = 1.0) -> LayerFactors:
        return LayerFactors(update=(scaled(parameters["up"], strength * self.scale), parameters["down"]))


def scaled(tensor: Tensor, scale: float) -> Tensor:
    """``scale · tensor``, without an operation at scale 1."""
    return tensor if scale == 1 else scale * tensor
