"""What several methods are built from: starting values, the low-rank update, and a trainable orthogonal matrix."""

import functools
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import field_validator
from torch import Generator, Tensor, nn

from hra_diffusion.adapters import householder
from hra_diffusion.adapters.registry import Inner, LowRank, MethodConfig


def kaiming(shape: tuple[int, int], generator: Generator) -> Tensor:
    """The uniform start of LoRA, HRA and PEFT: Kaiming with a = √5 over the second dimension."""
    return nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)


def low_rank_rows(rows: Tensor, inner: Inner, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """``inner(rows) + scale · rows · downᵀ · upᵀ`` for down (r, d_in) and up (d_out, r)."""
    low = F.linear(rows, down.to(rows.dtype))
    return householder.plus_product(inner(rows), low, up.mT.to(rows.dtype), scale)


def low_rank_weight(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """``weight + scale · up · down``, in the weight's dtype."""
    return weight + (scale * (up @ down)).to(weight.dtype)


def low_rank_update(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> LowRank:
    """A LoRA as it leaves: its scale in ``up``, in the weight's dtype."""
    return LowRank((scale * up).to(weight.dtype), down.to(weight.dtype))


class ReflectionConfig(MethodConfig):
    """Options of the methods made of reflections."""

    @field_validator("rank")
    @classmethod
    def _even(cls, rank: int) -> int:
        if rank % 2:
            raise ValueError(f"rank must be even: reflections come in pairs that cancel at the start; use {rank + 1}")
        return rank


CHAINS = {
    "exact": householder.reflection_chain,
    "orthonormal": householder.gram_schmidt_chain,
    "approximate": householder.approximate_chain,
}


Factors = tuple[Tensor, Tensor]


class Rotation(nn.Module):
    """A trainable orthogonal d×d matrix, a chain of r reflections whose vectors are the columns of ``u`` (d, r).

    ``form`` says how the vectors make the matrix: "exact" reflections, "orthonormal" ones (λ = ∞), or HOFT's
    "approximate" inverse. Columns start in equal pairs, which makes the exact chain the identity while its gradients
    are not zero; orthonormal ones start unpaired and are never the identity.
    """

    def __init__(self, dim: int, rank: int, generator: Generator, form: str = "exact"):
        super().__init__()
        self.chain = CHAINS[form]
        self.u = nn.Parameter((kaiming if form == "orthonormal" else paired)((dim, rank), generator))
        self.ahead: tuple[int, Factors] | None = None
        self.met: torch.dtype | None = None
        """The dtype that rows last came in: factors worked out ahead are then in it already."""

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: not what was computed from the vectors."""
        return self.__dict__ | {"ahead": None}

    def forward(self, rows: Tensor, strength: float = 1.0, scale: Tensor | None = None) -> Tensor:
        """``rows · Qᵀ``: each row mapped by Q^strength, after ``scale`` (d,) if there is one."""
        self.met = rows.dtype
        return householder.rotate_rows(rows, *self.factors(rows.dtype, strength), scale)

    def transposed(self, rows: Tensor, strength: float = 1.0) -> Tensor:
        """``rows · Q``, as a weight's rows need it in ``W Q``."""
        down, up = self.factors(rows.dtype, strength)
        return householder.rotate_rows(rows, up, down)

    def update(self, weight: Tensor, strength: float = 1.0) -> LowRank:
        """``W Q = W + (W up) · downᵀ``."""
        down, up = (factor.to(weight.dtype) for factor in self.factors(weight.dtype, strength))
        return LowRank(weight @ up, down.mT)

    def factors(self, dtype: torch.dtype, strength: float = 1.0) -> Factors:
        """(down, up), each (d, r), of ``Q^strength = I + up · downᵀ``, in ``dtype`` or float32.

        With gradients at strength 1 only, and then maybe worked out ahead.
        """
        if strength == 1:
            ahead = self.ahead if torch.is_grad_enabled() else None  # without gradients u may have changed unseen
            if ahead and ahead[0] == self.u._version and ahead[1][0].dtype in (dtype, torch.float32):
                return ahead[1]
            basis, core = self.chain(self.u)
        else:
            basis, core = self.chain(self.u.detach())
            if self.chain is householder.approximate_chain:  # not orthogonal: it has no power, blend it
                core = strength * core
            else:
                basis, core = householder.power(basis, core, strength)
        return householder.applicable(basis, core)


def precompute_factors(rotations: Iterable[Rotation]) -> None:
    """Compute the factors of many rotations, with gradients, for one forward and backward pass of their model.

    Those of one shape at once: a few large products instead of hundreds of small ones, forward and backward.
    """
    for group in group_by_shape(rotations):
        vectors = torch.stack([rotation.u for rotation in group])
        if vectors.requires_grad:
            vectors.register_hook(functools.partial(_forget, group))  # called when the backward pass is done with them
        factors = householder.applicable(*group[0].chain(vectors))
        downs, ups = (factor.to(group[0].met or factor.dtype) for factor in factors)
        for rotation, down, up in zip(group, downs, ups, strict=True):
            rotation.ahead = rotation.u._version, (down, up)


def group_by_shape(rotations: Iterable[Rotation]) -> list[list[Rotation]]:
    """Rotations in groups of one form and shape, on one device, met by rows of one dtype: what can be stacked."""
    groups: dict[tuple, list[Rotation]] = {}
    for rotation in rotations:
        groups.setdefault((rotation.chain, rotation.u.shape, rotation.u.device, rotation.met), []).append(rotation)
    return list(groups.values())


def _forget(rotations: list[Rotation], gradient: Tensor) -> None:
    for rotation in rotations:
        rotation.ahead = None


def paired(shape: tuple[int, int], generator: Generator) -> Tensor:
    """(d, r) with columns in equal pairs. Their length is Kaiming's, as in HRA's code and PEFT, so that
    published learning rates hold: only a column's direction counts, and Adam turns it by about lr·√d/‖u‖ a step."""
    dim, rank = shape
    return kaiming((dim, rank // 2), generator).repeat_interleave(2, dim=1)
