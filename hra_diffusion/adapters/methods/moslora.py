"""MoSLoRA: LoRA with a trainable r×r mixer between the factors, ``W + (α/r) B M A`` (arXiv 2406.11909)."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from hra_diffusion.adapters.factors import LayerFactors
from hra_diffusion.adapters.initial_values import kaiming_uniform
from hra_diffusion.adapters.methods.lora import UpdateConfig, scaled
from hra_diffusion.adapters.registry import Adapter, register


class MoSLoRAConfig(UpdateConfig):
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
class MoSLoRA(Adapter):
    """``down`` is A (r, d_in), ``mixer`` M (r, r), ``up`` B (d_out, r). With M = 0 nothing trains; M = I is LoRA."""

    def __init__(self, config: MoSLoRAConfig, d_in: int, d_out: int, generator: Generator):
        super().__init__()
        self.scale = config.scale
        self.down = nn.Parameter(kaiming_uniform((config.rank, d_in), generator))
        self.mixer = nn.Parameter(initial_mixer(config.mixer, config.rank, generator))
        self.up = nn.Parameter(torch.zeros(d_out, config.rank))

    def factors(self, parameters: Mapping[str, Tensor], strength: float = 1.0) -> LayerFactors:
        mixed = parameters["mixer"] @ parameters["down"]  # M A, with which MoSLoRA is a plain LoRA
        return LayerFactors(update=(scaled(parameters["up"], strength * self.scale), mixed))


def initial_mixer(kind: str, rank: int, generator: Generator) -> Tensor:
    """Initial values of the mixer M (rank, rank)."""
    if kind == "orthogonal":
        return nn.init.orthogonal_(torch.empty(rank, rank), generator=generator)
    return kaiming_uniform((rank, rank), generator)
