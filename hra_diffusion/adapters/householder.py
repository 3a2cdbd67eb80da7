"""Products of Householder reflections in compact WY form: pure tensor functions.

A chain of r reflections ``H_1 … H_r`` with ``H_i = I − 2 û_i û_iᵀ`` equals ``I − Û T Ûᵀ`` with
``T = (½ I + striu(ÛᵀÛ))⁻¹`` (upper triangular, r×r). No function builds a d×d matrix. Functions of the vectors accept
batches, (…, d, r).

An orthogonal matrix is represented by ``basis`` (d, r) and ``core`` (r, r) with ``Q = I − basis · core · basisᵀ``, and
where it is applied by the factors ``up`` (d, r) and ``down`` (r, d) with ``Q = I + up · down``. Vectors are columns of
U; data are rows.

Sources: Bischof & Van Loan 1987 (WY form); HRA, arXiv 2405.17484; HOFT, arXiv 2505.16531.
"""

import contextlib
import math
from collections import OrderedDict
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from hra_diffusion.adapters.factors import Factors

HALF_TURN_TOLERANCE = 1e-5
"""Elementwise distance from −I up to which a rotation is taken for −I rounded to float32."""


def unit_columns(u: Tensor) -> Tensor:
    """Normalise the columns of ``u`` (d, r) to length 1, in float32 or wider; a zero column stays zero."""
    return F.normalize(_at_least_float32(u), dim=-2)


def wy_factor(u: Tensor) -> Tensor:
    """T (r, r) of the compact WY form ``I − Û T Ûᵀ = H_1 … H_r`` for the columns of ``u`` (d, r), of any length.

    Upper triangular, in float32 or wider also under autocast. Valid for coincident and nearly parallel columns.
    Source: arXiv 2405.17484, with an explicit triangular inverse.
    """
    return _wy_factor_of(unit_columns(u))


def reflection_chain(u: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (basis, core) of ``H_1 … H_r`` for the columns of ``u`` (d, r).

    For an even r the basis consists of the sums and differences of consecutive columns of Û. Columns initialised in
    equal pairs act only through their small differences; computed here in float32, these survive a cast to bfloat16.
    """
    unit = unit_columns(u)
    core = _wy_factor_of(unit)
    if u.shape[-1] % 2:
        return unit, core
    with own_precision(u.device):
        change = sums_and_differences(torch.eye(u.shape[-1], dtype=unit.dtype, device=unit.device))
        return sums_and_differences(unit), change.mT @ core @ change


def sums_and_differences(columns: Tensor) -> Tensor:
    """Orthogonal change of basis of columns (d, r), r even, to ``(c1 + c2)/√2, (c3 + c4)/√2, …, (c1 − c2)/√2, …``."""
    return _sums_and_differences(columns) / math.sqrt(2)


def reflection_factors(u: Tensor) -> Factors:
    """(up, down) of ``H_1 … H_r = I + up · down`` for the columns of ``u`` (d, r), r even.

    Equal to ``low_rank_factors`` of ``reflection_chain``, in fewer operations: ``T = 2 X`` with X the inverse of the
    unit triangular ``I + 2 striu(ÛᵀÛ)``, and the change of basis C, ``C Cᵀ = I``, applied to ``Û X`` and to Û.
    """
    unit = unit_columns(u)
    with own_precision(u.device):
        identity = torch.eye(u.shape[-1], dtype=unit.dtype, device=unit.device)
        x = torch.linalg.solve_triangular(2 * (unit.mT @ unit), -identity, upper=True, unitriangular=True)
        return _sums_and_differences(unit @ x), _sums_and_differences(unit).mT


def _sums_and_differences(columns: Tensor) -> Tensor:
    first, second = columns.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.cat([first + second, first - second], dim=-1)


def approximate_chain(u: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (basis, core) of HOFT's published approximation ``T ≈ 2 I − 4 striu(ÛᵀÛ)``, to reproduce the paper.

    Exact and orthogonal for r ≤ 2 only. Source: arXiv 2505.16531, the Neumann step ``S⁻¹ ≈ D⁻¹ − D⁻¹ A D⁻¹`` with
    D = ½ I.
    """
    unit = unit_columns(u)
    with own_precision(u.device):
        identity = torch.eye(u.shape[-1], dtype=unit.dtype, device=unit.device)
        return unit, 2 * identity - 4 * (unit.mT @ unit).triu(1)


def gram_schmidt_chain(u: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (basis, core) of ``I − 2 Q Qᵀ`` with Q the orthonormalised columns of ``u`` (d, r): HRA at λ = ∞.

    The columns must be linearly independent, so they can't be initialised in equal pairs.
    """
    with own_precision(u.device):
        basis = torch.linalg.qr(_at_least_float32(u)).Q
    core = 2 * torch.eye(u.shape[-1], dtype=basis.dtype, device=basis.device)
    return basis, core.expand(*u.shape[:-2], -1, -1)


def low_rank_factors(basis: Tensor, core: Tensor) -> Factors:
    """(up, down) with ``I + up · down = I − basis · core · basisᵀ``, in the dtype of basis and core."""
    with own_precision(basis.device):
        return basis @ -core, basis.mT


def orthogonality_defect(u: Tensor) -> Tensor:
    """``‖I − ÛᵀÛ‖²_F`` of the unit columns of ``u``: the HRA regulariser of one layer (arXiv 2405.17484, eq. 7)."""
    unit = unit_columns(u)
    with own_precision(u.device):
        identity = torch.eye(u.shape[-1], dtype=unit.dtype, device=unit.device)
        return (identity - unit.mT @ unit).square().sum((-2, -1))


def power(basis: Tensor, core: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    """Factors (basis, core) of ``Q^exponent`` for ``Q = I − basis · core · basisᵀ`` of even rank.

    Q acts on span(basis) only. With Z an orthonormal basis of this span, ``Q = I + Z (R − I) Zᵀ`` with a rotation R of
    determinant +1, so ``Q^s = I + Z (R^s − I) Zᵀ`` with the real matrix power, which is orthogonal at every exponent.
    Half turns don't determine their planes: consecutive columns of Z are paired (at λ = ∞ the Gram–Schmidt columns).
    Computed in float64 on the CPU with r×r matrices. Not differentiable. The latest results are kept, and used again
    for equal factors.
    """
    return cast(tuple[Tensor, Tensor], _power(basis.detach(), core.detach().contiguous(), exponent))


@torch.library.custom_op("hra_diffusion::power", mutates_args=())  # one operation for torch.compile
def _power(basis: Tensor, core: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    key = basis.shape, basis.dtype, basis.device, exponent
    if (kept := _latest_powers.pop(key, None)) is None or not (kept[0].equal(basis) and kept[1].equal(core)):
        pairs = zip(basis.reshape(-1, *basis.shape[-2:]), core.reshape(-1, *core.shape[-2:]), strict=True)
        results = [_power_of_one(*pair, exponent) for pair in pairs]
        powers, cores = (torch.stack(tensors) for tensors in zip(*results, strict=True))
        kept = basis.clone(), core.clone(), powers.view(basis.shape), cores.view(core.shape)
    _latest_powers[key] = kept
    if len(_latest_powers) > 32:
        _latest_powers.popitem(last=False)
    return kept[2].clone(), kept[3].clone()


@_power.register_fake
def _(basis: Tensor, core: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(basis), torch.empty_like(core)


_latest_powers: OrderedDict[tuple[Any, ...], tuple[Tensor, Tensor, Tensor, Tensor]] = OrderedDict()


def _power_of_one(basis: Tensor, core: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    z = torch.linalg.qr(basis.cpu().double()).Q
    inside = z.mT @ basis.cpu().double()
    identity = torch.eye(z.shape[1], dtype=z.dtype)
    rotation = identity - inside @ core.cpu().double() @ inside.mT
    if (rotation + identity).abs().max() < HALF_TURN_TOLERANCE:
        rotation = -identity  # otherwise rounding would choose the planes
    return z.to(basis), (identity - torch.matrix_exp(exponent * rotation_log(rotation))).to(core)


def rotation_log(rotation: Tensor) -> Tensor:
    """The principal logarithm of an orthogonal matrix (r, r) of determinant +1: skew-symmetric and real, in float64.

    The matrix is normal, so its orthonormalised eigenvectors are its Schur vectors, each with its own angle in (−π, π].
    Half turns don't determine their planes or directions: their eigenvectors are paired as real planes.
    """
    vectors = torch.linalg.qr(torch.linalg.eig(rotation).eigenvectors).Q
    angles = (vectors.mH @ rotation.to(vectors) @ vectors).diagonal().angle()
    half = angles.abs() > math.pi - 1e-9
    turning, flipped = vectors[:, ~half], vectors[:, half]
    planes = torch.linalg.eigh((flipped @ flipped.mH).real).eigenvectors[:, len(rotation) - flipped.shape[1] :]
    across = planes[:, 1::2] @ planes[:, 0::2].mT
    return (turning * (1j * angles[~half]) @ turning.mH).real + math.pi * (across - across.mT)


def own_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """Context manager that disables autocast on the device."""
    available = torch.amp.is_autocast_available(device.type)  # not on "meta"
    return torch.autocast(device.type, enabled=False) if available else contextlib.nullcontext()


def _wy_factor_of(unit: Tensor) -> Tensor:
    with own_precision(unit.device):
        identity = torch.eye(unit.shape[-1], dtype=unit.dtype, device=unit.device)
        return torch.linalg.solve_triangular(2 * (unit.mT @ unit), 2 * identity, upper=True, unitriangular=True)


def _at_least_float32(u: Tensor) -> Tensor:
    return u if u.dtype in (torch.float32, torch.float64) else u.float()
