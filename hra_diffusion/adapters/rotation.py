"""Trainable orthogonal matrices made of Householder reflections, the building block of HRA, HOFT and SHOFT."""

from pydantic import field_validator
from torch import Generator, Tensor, nn

from hra_diffusion.adapters import householder
from hra_diffusion.adapters.factors import Factors
from hra_diffusion.adapters.initial_values import kaiming_uniform
from hra_diffusion.adapters.registry import MethodConfig

CHAINS = {
    "exact": householder.reflection_chain,
    "orthonormal": householder.gram_schmidt_chain,
    "approximate": householder.approximate_chain,
}


class ReflectionConfig(MethodConfig):
    """Options of the methods based on reflections."""

    @property
    def form(self) -> str:
        """How the columns of ``Rotation`` make the matrix."""
        return "exact"

    @property
    def units(self) -> int:
        """Number of pairs of reflections, whose sums and differences are the ranks of an exact chain."""
        return self.rank // 2 if self.form == "exact" else self.rank

    @property
    def orthogonal(self) -> bool:
        """Whether the columns make an orthogonal matrix: the approximate inverse does not."""
        return self.form != "approximate"

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
        self.form = form
        self.u = nn.Parameter((kaiming_uniform if form == "orthonormal" else paired)((dim, rank), generator))

    def factors(self, u: Tensor, strength: float = 1.0) -> Factors:
        """(up (…, d, r), down (…, r, d)) of ``Q^strength = I + up · down`` for the columns of ``u`` (…, d, r).

        In float32 or wider. Differentiable at strength 1 only.
        """
        if strength == 1:
            exact = self.form == "exact"
            return householder.reflection_factors(u) if exact else householder.low_rank_factors(*CHAINS[self.form](u))
        basis, core = CHAINS[self.form](u.detach())
        # the approximate chain is not orthogonal, so it has no power: interpolate linearly
        interpolate = self.form == "approximate"
        basis, core = (basis, strength * core) if interpolate else householder.power(basis, core, strength)
        return householder.low_rank_factors(basis, core)


def paired(shape: tuple[int, int], generator: Generator) -> Tensor:
    """Initial vectors (d, r) with columns in equal pairs.

    Their length is that of a Kaiming initialisation, as in HRA's code and PEFT, so that published learning rates hold:
    only a column's direction matters, and Adam rotates it by about lr·√d/‖u‖ per step.
    """
    dim, rank = shape
    return kaiming_uniform((dim, rank // 2), generator).repeat_interleave(2, dim=1)
