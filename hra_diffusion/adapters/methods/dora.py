"""DoRA: LoRA with a trained norm of each output's weight, ``diag(m / ‖W + (α/r) B A‖) (W + (α/r) B A)``.

Source: arXiv 2402.09353. As in section 4.3, the norm counts as a constant in the gradient.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor, nn

from hra_diffusion.adapters.factors import LayerFactors
from hra_diffusion.adapters.initial_values import kaiming_uniform
from hra_diffusion.adapters.methods.lora import UpdateConfig, scaled
from hra_diffusion.adapters.registry import Adapter, register


class DoRAConfig(UpdateConfig):
    """Options of DoRA."""


@register(
    "dora",
    config=DoRAConfig,
    title="DoRA",
    summary="LoRA that learns the norm of each output's weight apart from its direction.",
    paper="arXiv 2402.09353",
)
class DoRA(Adapter):
    """``down`` is A (r, d_in), ``up`` is B (d_out, r), starting at zero; ``magnitude`` m (d_out,) starts at ‖W‖.

    Strength s scales the update by s, and the norm goes from that of W to m.
    """

    def __init__(self, config: DoRAConfig, d_in: int, d_out: int, generator: Generator):
        super().__init__()
        self.scale = config.scale
        self.down = nn.Parameter(kaiming_uniform((config.rank, d_in), generator))
        self.up = nn.Parameter(torch.zeros(d_out, config.rank))
        self.magnitude = nn.Parameter(torch.ones(d_out))

    @torch.no_grad()
    def start_from(self, weight: Callable[[], Tensor]) -> None:
        self.magnitude.copy_(weight().float().norm(dim=1))

    def factors(self, parameters: Mapping[str, Tensor], strength: float = 1.0) -> LayerFactors:
        update = scaled(parameters["up"], strength * self.scale), parameters["down"]
        return LayerFactors(update=update, magnitude=parameters["magnitude"])
