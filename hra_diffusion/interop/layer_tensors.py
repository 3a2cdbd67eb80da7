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
        if part not in self.by_part:
            raise LayerTensorsError(f"{part} is missing; the file is incomplete, get it again")
        return self.by_part[part].double()

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
