"""SHOFT: HOFT with a trainable scale of each output, ``Q_U diag(m) W Q_V`` (arXiv 2505.16531)."""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn

from hra_diffusion.adapters.factors import LayerFactors
from hra_diffusion.adapters.methods.hoft import HOFT, HOFTConfig, starts_at_base
from hra_diffusion.adapters.registry import Adapter, register


@register(
    "shoft",
    config=HOFTConfig,
    title="SHOFT",
    summary="HOFT that may also scale each output.",
    paper="arXiv 2505.16531",
    starts_at_base=starts_at_base,
)
class SHOFT(Adapter):
    """``hoft`` holds Q_U and Q_V; ``magnitude`` m (d_out,) starts at 1. Strength s scales by 1 + s (m − 1)."""

    def __init__(self, config: HOFTConfig, d_in: int, d_out: int, generator: Generator):
        super().__init__()
        self.hoft = HOFT(config, d_in, d_out, generator)
        self.magnitude = nn.Parameter(torch.ones(d_out))

    def factors(self, parameters: Mapping[str, Tensor], strength: float = 1.0) -> LayerFactors:
        rotations = {name: parameters[f"hoft.{name}"] for name in ("left.u", "right.u")}
        magnitude = parameters["magnitude"]
        scale = magnitude if strength == 1 else 1 + strength * (magnitude - 1)
        return self.hoft.factors(rotations, strength)._replace(scale=scale)
