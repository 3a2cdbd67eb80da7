"""BOFT: rotate the input by butterfly stages of blocks and scale each output, ``diag(s) W Rᵀ`` (arXiv 2311.06243)."""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from hra_diffusion.adapters.block_rotation import BlockConfig, cayley
from hra_diffusion.adapters.factors import LayerFactors
from hra_diffusion.adapters.registry import Adapter, register


class BOFTConfig(BlockConfig):
    """Options of BOFT."""

    rank: int = Field(8, ge=2, le=256, description="Size of the blocks: the capacity of the adapter and its size.")
    stages: int = Field(2, ge=1, le=8, description="Butterfly stages; with 1, the blocks are OFT's.")

    @property
    def stages_of_blocks(self) -> int:
        return self.stages


@register(
    "boft",
    config=BOFTConfig,
    title="BOFT",
    summary="Rotates each weight's input in blocks whose parts are mixed in stages, and scales each output.",
    paper="arXiv 2311.06243",
)
class BOFT(Adapter):
    """``rotations`` (m, n, b, b), of which the skew-symmetric part counts, and ``scale`` (d_out, 1).

    They start at 0 and 1. Strength s scales the skew-symmetric part by s, and outputs by 1 + s (scale − 1).
    """

    def __init__(self, config: BOFTConfig, d_in: int, d_out: int, generator: Generator):
        super().__init__()
        self.rotations = nn.Parameter(torch.zeros(config.stages, d_in // config.rank, config.rank, config.rank))
        self.scale = nn.Parameter(torch.ones(d_out, 1))

    def factors(self, parameters: Mapping[str, Tensor], strength: float = 1.0) -> LayerFactors:
        rotations, scale = parameters["rotations"], parameters["scale"][..., 0]
        skew = strength * (rotations - rotations.mT) / 2
        return LayerFactors(blocks=cayley(skew), scale=1 + strength * (scale - 1))
