"""The tensors of one layer of another program's adapter file, and checks against PEFT's settings."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hra_diffusion.adapters.factors import Factors
from hra_diffusion.errors import UserError
from hra_diffusion.interop.peft_settings import PeftSettings


class LayerTensorsError(UserError):
    """The tensors of a layer are incomplete or inconsistent."""


@dataclass(frozen=True)
class LayerTensors:
    """The tensors of one layer by part ("down", "up", "alpha", "hada_w1_a", …), with PEFT's settings, if any."""

    by_part: dict[str, Tensor]
    settings: PeftSettings | None = None

    def get(self, part: str) -> Tensor:
        """The tensor of a part in float64. Raises LayerTensorsError if it is missing."""
        return self._part(part).double()

    def matrix(self, part: str) -> Tensor:
        """The tensor of a part in float64. Raises LayerTensorsError if it is missing or has not two dimensions."""
        return self._part(part, dimensions=(2, 2)).double()

    def shape(self, part: str) -> tuple[int, int]:
        """(rows, columns) of a part as a matrix, in which a kernel is part of the columns."""
        return matrix_shape(self._part(part, dimensions=(2, 4)))

    def kernel(self, part: str) -> int:
        """Number of values of the kernel in a part (rank, rank, …)."""
        return self._part(part, dimensions=(2, 4)).shape[2:].numel()

    def _part(self, part: str, dimensions: tuple[int, int] = (0, 8)) -> Tensor:
        if part not in self.by_part:
            raise LayerTensorsError(f"{part} is missing; the file is incomplete, get it again")
        tensor, (least, most) = self.by_part[part], dimensions
        if not least <= tensor.ndim <= most:
            raise LayerTensorsError(f"{part} is {tuple(tensor.shape)}, not a matrix; get the file again")
        return tensor

    def has(self, prefix: str) -> bool:
        """Whether the name of any part starts with ``prefix``."""
        return any(part.startswith(prefix) for part in self.by_part)

    @property
    def decomposed(self) -> bool:
        """Whether the layer has DoRA's magnitudes."""
        return self.has("magnitude") or self.has("dora_scale")


def disagreement(name: str, expected: object, found: object) -> LayerTensorsError:
    """The error for tensors whose shape or kind contradicts PEFT's setting ``name``."""
    return LayerTensorsError(f"its settings say {name} = {expected}, its tensors {found}; get the folder again")


def matrix_shape(weight: Tensor) -> tuple[int, int]:
    """(rows, columns) of a layer's weight, or of a part, as a matrix."""
    return len(weight), weight.shape[1:].numel()


def check_shape(weight: Tensor, rows: int, columns: int) -> None:
    """Raise LayerTensorsError unless a change of this shape fits the weight.

    Called before factors are multiplied: the product of small ones can have any size.
    """
    if (rows, columns) != (own := matrix_shape(weight)):
        raise LayerTensorsError(f"the file has {(rows, columns)}, this base {own}: it is for another base")


def check_rank(tensors: LayerTensors, rank: int) -> None:
    """Raise LayerTensorsError if the settings have another rank than the tensors."""
    if tensors.settings is not None and tensors.settings.r not in (None, rank):
        raise disagreement("r (or rank_pattern)", tensors.settings.r, rank)


def alpha_scale(tensors: LayerTensors, rank: int) -> float:
    """alpha / rank, with alpha from the file or from PEFT's settings; 1 if there is none."""
    if "alpha" in tensors.by_part:
        return (tensors.by_part["alpha"].item() or rank) / rank  # LyCORIS and kohya write 0 for alpha = rank
    if tensors.settings is None:
        return 1.0
    check_rank(tensors, rank)
    return tensors.settings.alpha / (rank**0.5 if tensors.settings.use_rslora else rank)


def in_float64(weight: Tensor) -> Tensor:
    """The weight in float64 on the CPU. Only for forms that need its values: a meta pipeline has none."""
    return weight.cpu().double()


def full_rank_factors(change: Tensor) -> Factors:
    """Any matrix as (up, down) of full rank: itself and the identity of its smaller dimension."""
    d_out, d_in = change.shape
    if d_in <= d_out:
        return change, torch.eye(d_in, dtype=change.dtype)
    return torch.eye(d_out, dtype=change.dtype), change
