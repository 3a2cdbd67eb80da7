"""SHOFT: HOFT with a trainable scale of each output, ``Q_U diag(m) W Q_V`` (arXiv 2505.16531)."""

import torch
from torch import Generator, Tensor, nn

from hra_diffusion.adapters.methods.hoft import HOFT, HOFTConfig, starts_at_base
from hra_diffusion.adapters.registry import MIN_SCALE, BaseForward, LowRank, register


@register(
    "shoft",
    config=HOFTConfig,
    title="SHOFT",
    summary="HOFT that may also scale each output.",
    paper="arXiv 2505.16531",
    starts_at_base=starts_at_base,
)
class SHOFT(nn.Module):
    """``hoft`` holds Q_U and Q_V; ``magnitude`` m (d_out,) starts at 1. Strength s scales by 1 + s (m − 1)."""

    def __init__(self, config: HOFTConfig, d_in: int, d_out: int, generator: Generator):
        super().__init__()
        self.hoft = HOFT(config, d_in, d_out, generator)
        self.magnitude = nn.Parameter(torch.ones(d_out))

    def forward(self, x: Tensor, base_forward: BaseForward, strength: float = 1.0) -> Tensor:
        return self.hoft(x, base_forward, strength, self._scale(strength))

    def adapted_weight(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        scaled = weight * self._scale(strength)[:, None].to(weight.dtype)
        return self.hoft.adapted_weight(scaled, strength)

    def low_rank(self, weight: Tensor, strength: float = 1.0) -> LowRank:
        scale = self._scale(strength).to(weight.dtype)
        scale = torch.where(scale.abs() < MIN_SCALE, scale + 2 * MIN_SCALE, scale)  # 0 has no such form
        up, down, _ = self.hoft.low_rank(weight * scale[:, None], strength)
        return LowRank(up / scale[:, None], down, scale)

    def _scale(self, strength: float) -> Tensor:
        return self.magnitude if strength == 1 else 1 + strength * (self.magnitude - 1)
