"""Cached low-rank updates of a layer, and the version keys that say whether they are still valid."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from hra_diffusion.adapters.quantization import Quantised
from hra_diffusion.adapters.registry import LowRank


@dataclass(frozen=True)
class CachedUpdate:
    """The active adapters of a layer as one low-rank update, or None if they don't change the layer.

    ``parameters`` are the adapters' parameters; ``key`` is the ``cache_key`` at the time of the computation.
    """

    low_rank: LowRank | None
    parameters: list[nn.Parameter]
    key: tuple[Any, ...]


def cache_key(layer: nn.Module, parameters: list[nn.Parameter], dtype: torch.dtype) -> tuple[Any, ...]:
    """A key that changes with the layer's weight, the parameters or the dtype."""
    stored = layer.codes if isinstance(layer, Quantised) else layer.weight
    return dtype, version_key(cast(Tensor, stored)), *map(version_key, parameters)


def version_key(tensor: Tensor) -> tuple[int, int]:
    """A key that changes when the tensor is written to.

    Writes in inference mode and by fused optimisers don't change a tensor's version, so they go unnoticed.
    """
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
