"""OFT: rotate the input by a block-diagonal matrix, ``W Rᵀ`` (arXiv 2306.07280), applied to activations as in OFTv2."""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from hra_diffusion.adapters.block_rotation import BlockConfig, cayley, cayley_neumann, skew_blocks
from hra_diffusion.adapters.factors import LayerFactors
from hra_diffusion.adapters.registry import Adapter, PeftForm, register


class OFTConfig(BlockConfig):
    """Options of OFT."""

    cayley_neumann: bool = Field(
        False, description="Approximate the Cayley transform by a series of five terms, as OFTv2: faster on a GPU."
    )


TERMS = 5
"""Terms of the series, PEFT's default."""


@register(
    "oft",
    config=OFTConfig,
    title="OFT",
    summary="Rotates each weight's input in blocks.",
    paper="arXiv 2306.07280",
    peft=PeftForm(
        "OFT",
        {"skew": "oft_R.weight"},
        to_peft=lambda config: {
            "r": 0, "oft_block_size": config.rank, "use_cayley_neumann": config.cayley_neumann,
            "num_cayley_neumann_terms": TERMS, "peft_version": "0.18.0",  # before it the series had another sign
        },
        linear_only=True,
    ),
)  # fmt: skip
class OFT(Adapter):
    """``skew`` (n, b(b − 1)/2): the upper triangles of skew-symmetric matrices, starting at zero.

    Strength s scales them by s: still a rotation, and by about s times the angle.
    """

    def __init__(self, config: OFTConfig, d_in: int, d_out: int, generator: Generator):
        super().__init__()
        self.size, self.series = config.rank, config.cayley_neumann
        self.skew = nn.Parameter(torch.zeros(d_in // self.size, self.size * (self.size - 1) // 2))

    def factors(self, parameters: Mapping[str, Tensor], strength: float = 1.0) -> LayerFactors:
        skew = skew_blocks(strength * parameters["skew"], self.size)
        rotations = cayley_neumann(skew, TERMS) if self.series else cayley(skew)
        return LayerFactors(blocks=rotations.unsqueeze(-4))
