"""Trainable orthogonal matrices made of Householder reflections, the building block of HRA, HOFT and SHOFT."""

import functools
from collections.abc import Iterable
from typing import Any

import torch
from pydantic import field_validator
from torch import Generator, Tensor, nn

from hra_diffusion.adapters import householder
from hra_diffusion.adapters.householder import Factors
from hra_diffusion.adapters.low_rank import kaiming_uniform
from hra_diffusion.adapters.registry import LowRank, MethodConfig

CHAINS = {
    "exact": householder.reflection_chain,
    "orthonormal": householder.gram_schmidt_chain,
    "approximate": householder.approximate_chain,
}


class ReflectionConfig(MethodConfig):
    """Options of the methods based on reflections."""

    @field_validator("rank")
    @classmethod
    def _even(cls, rank: int) -> int:
        if rank % 2:
            raise ValueError(f"rank must be even: reflections come in pairs that cancel at the start; use {rank + 1}")
        return rank


class Rotation(nn.Module):
    """A trainable orthogonal (d, d) matrix Q: a chain of r reflections along the columns of ``u`` (d, r).

    ``form`` is how the columns make the matrix: "exact" reflections, "orthonormal" ones (λ = ∞), or HOFT's
    "approximate" inverse. The columns are initialised in equal pairs, for which the exact chain is the identity with
    gradients other than zero. Orthonormal columns are initialised unpaired and never give the identity.
    """

    def __init__(self, dim: int, rank: int, generator: Generator, form: str = "exact"):
        super().__init__()
        self.chain = CHAINS[form]
        self.u = nn.Parameter((kaiming_uniform if form == "orthonormal" else paired)((dim, rank), generator))
        self.cached_factors: tuple[int, Factors] | None = None
        """The version of ``u`` and the factors precomputed from it."""
        self.compute_dtype: torch.dtype | None = None
        """Dtype of the latest input, in which factors are precomputed."""

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy, without cached factors."""
        return self.__dict__ | {"cached_factors": None}

    def forward(self, x: Tensor, strength: float = 1.0, scale: Tensor | None = None) -> Tensor:
        """Map each row of ``x`` (…, d) by Q^strength, after multiplying it by ``scale`` (d,) if given."""
        self.compute_dtype = x.dtype
        return householder.rotate_rows(x, *self.factors(x.dtype, strength), scale)

    def rotate_weight(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """``W Q^strength`` for a weight (…, d)."""
        up, down = self.factors(weight.dtype, strength)
        return householder.rotate_rows(weight, down.mT, up.mT)

    def low_rank(self, weight: Tensor, strength: float = 1.0) -> LowRank:
        """``W Q^strength = W + (W · up) · down`` as a low-rank update of the weight (…, d)."""
        up, down = (factor.to(weight.dtype) for factor in self.factors(weight.dtype, strength))
        return LowRank(weight @ up, down)

    def factors(self, dtype: torch.dtype, strength: float = 1.0) -> Factors:
        """(up (d, r), down (r, d)) of ``Q^strength = I + up · down``, in ``dtype`` or float32.

        Differentiable at strength 1 only.
        """
        if strength == 1:
            # without gradients, u may have changed without a new version
            cached = self.cached_factors if torch.is_grad_enabled() else None
            if cached and cached[0] == self.u._version and cached[1][0].dtype in (dtype, torch.float32):
                return cached[1]
            basis, core = self.chain(self.u)
        else:
            basis, core = self.chain(self.u.detach())
            if self.chain is householder.approximate_chain:  # not orthogonal, so it has no power: interpolate linearly
                core = strength * core
            else:
                basis, core = householder.power(basis, core, strength)
        return householder.low_rank_factors(basis, core)


def precompute_factors(rotations: Iterable[Rotation]) -> None:
    """Compute the factors of many rotations, with gradients, for one forward and backward pass of their model.

    Rotations of one shape are computed together: a few large products instead of hundreds of small ones, forward and
    backward.
    """
    for group in group_by_shape(rotations):
        vectors = torch.stack([rotation.u for rotation in group])
        if vectors.requires_grad:
            vectors.register_hook(functools.partial(_clear_factors, group))  # called at the end of the backward pass
        factors = householder.low_rank_factors(*group[0].chain(vectors))
        ups, downs = (factor.to(group[0].compute_dtype or factor.dtype) for factor in factors)
        for rotation, up, down in zip(group, ups, downs, strict=True):
            rotation.cached_factors = rotation.u._version, (up, down)


def group_by_shape(rotations: Iterable[Rotation]) -> list[list[Rotation]]:
    """Group rotations whose vectors can be stacked: same form, shape, device and compute dtype."""
    groups: dict[tuple, list[Rotation]] = {}
    for rotation in rotations:
        key = (rotation.chain, rotation.u.shape, rotation.u.device, rotation.compute_dtype)
        groups.setdefault(key, []).append(rotation)
    return list(groups.values())


def paired(shape: tuple[int, int], generator: Generator) -> Tensor:
    """Initial vectors (d, r) with columns in equal pairs.

    Their length is that of a Kaiming initialisation, as in HRA's code and PEFT, so that published learning rates hold:
    only a column's direction matters, and Adam rotates it by about lr·√d/‖u‖ per step.
    """
    dim, rank = shape
    return kaiming_uniform((dim, rank // 2), generator).repeat_interleave(2, dim=1)


def _clear_factors(rotations: list[Rotation], gradient: Tensor) -> None:
    for rotation in rotations:
        rotation.cached_factors = None
