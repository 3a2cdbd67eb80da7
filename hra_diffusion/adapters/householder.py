"""Products of Householder reflections in compact WY form: pure tensor functions.

A chain of r reflections ``H_1 … H_r`` with ``H_i = I − 2 û_i û_iᵀ`` equals ``I − Û T Ûᵀ`` with
``T = (½ I + striu(ÛᵀÛ))⁻¹`` (upper triangular, r×r). Nothing here ever builds a d×d matrix. What makes factors from
vectors takes many matrices at once too, (…, d, r).

Every orthogonal matrix is passed around as two factors, ``basis`` (d, r) and ``core`` (r, r), meaning
``Q = I − basis · core · basisᵀ``; where it is applied, as ``down`` and ``up`` (d, r), meaning ``Q = I + up · downᵀ``.
Vectors are columns of U; data are rows.

Sources: Bischof & Van Loan 1987 (WY form); HRA, arXiv 2405.17484; HOFT, arXiv 2505.16531.
"""

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_TURN_TOLERANCE = 1e-5
"""A rotation this close to −I (elementwise) is −I seen through float32."""


def unit_columns(u: Tensor) -> Tensor:
    """Columns of ``u`` (d, r) scaled to length 1, in float32 or wider; a zero column stays zero."""
    return F.normalize(_at_least_float32(u), dim=-2)


def wy_factor(u: Tensor) -> Tensor:
    """T of the compact WY form for the columns of ``u`` (d, r), whatever their lengths.

    Returns (r, r), upper triangular, in float32 or wider also under autocast: ``I − Û T Ûᵀ`` is ``H_1 … H_r``.
    Valid for coincident and nearly parallel columns. Source: arXiv 2405.17484 with the triangular inverse written out.
    """
    return _wy_factor_of(unit_columns(u))


def reflection_chain(u: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (basis, core) of ``H_1 … H_r`` for the columns of ``u`` (d, r).

    For an even r the basis is not Û itself but the sums and differences of its consecutive columns. Columns that start
    in equal pairs act through their small differences alone; taken here, in float32, they survive a basis in bfloat16.
    """
    unit = unit_columns(u)
    core = _wy_factor_of(unit)
    if u.shape[-1] % 2:
        return unit, core
    with own_precision(u):
        turn = sums_and_differences(torch.eye(u.shape[-1], dtype=unit.dtype, device=unit.device))
        return sums_and_differences(unit), turn.mT @ core @ turn


def sums_and_differences(columns: Tensor) -> Tensor:
    """Columns (d, r), r even, as ``(c1 + c2)/√2, (c3 + c4)/√2, …, (c1 − c2)/√2, …``: an orthogonal change of basis."""
    first, second = columns[..., 0::2], columns[..., 1::2]
    return torch.cat([first + second, first - second], dim=-1) / math.sqrt(2)


def approximate_chain(u: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of HOFT's published approximation, ``T ≈ 2 I − 4 striu(ÛᵀÛ)``: exact and orthogonal for r ≤ 2 only.

    Source: arXiv 2505.16531, the Neumann step ``S⁻¹ ≈ D⁻¹ − D⁻¹ A D⁻¹`` with D = ½ I. Here to reproduce the paper.
    """
    unit = unit_columns(u)
    with own_precision(u):
        identity = torch.eye(u.shape[-1], dtype=unit.dtype, device=unit.device)
        return unit, 2 * identity - 4 * (unit.mT @ unit).triu(1)


def gram_schmidt_chain(u: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (basis, core) of ``I − 2 Q Qᵀ``, Q the orthonormalised columns of ``u`` (d, r): HRA at λ = ∞.

    Needs linearly independent columns; paired (equal) columns would orthogonalise a vector against itself.
    """
    with own_precision(u):
        basis = torch.linalg.qr(_at_least_float32(u)).Q
    core = 2 * torch.eye(u.shape[-1], dtype=basis.dtype, device=basis.device)
    return basis, core.expand(*u.shape[:-2], -1, -1)


def applicable(basis: Tensor, core: Tensor) -> tuple[Tensor, Tensor]:
    """(down, up) with ``I + up · downᵀ`` the matrix ``I − basis · core · basisᵀ``, at the factors' own precision."""
    with own_precision(basis):
        return basis, basis @ -core


def rotate_rows(rows: Tensor, down: Tensor, up: Tensor, scale: Tensor | None = None) -> Tensor:
    """``rows · Qᵀ`` for rows (…, d) and ``Q = I + up · downᵀ``; each row is mapped by Q.

    With a ``scale`` (d,), by ``Q diag(scale)``: the scaled rows themselves are not kept for the backward pass.

    With down and up exchanged it is ``rows · Q``. They meet ``rows`` in the rows' dtype, at 2·r·d multiply-adds a row.
    """
    scaled, down, up = rows, down.to(rows.dtype), up.to(rows.dtype)
    if scale is not None:
        scale = scale.to(rows.dtype)
        scaled, down = rows * scale, scale[:, None] * down
    return plus_product(scaled, rows @ down, up.mT, 1)


def plus_product(rows: Tensor, low: Tensor, up: Tensor, scale: float) -> Tensor:
    """``rows + scale · low · up`` for rows (…, d), low (…, r) and up (r, d), in one pass over the rows.

    As a product and a sum it is two, and two more on the way back.
    """
    return torch.addmm(rows.flatten(0, -2), low.flatten(0, -2), up, alpha=scale).view(rows.shape)


def orthogonality_defect(u: Tensor) -> Tensor:
    """``‖I − ÛᵀÛ‖²_F`` of the unit columns of ``u``: the HRA regulariser of one layer (arXiv 2405.17484, eq. 7)."""
    unit = unit_columns(u)
    with own_precision(u):
        identity = torch.eye(u.shape[-1], dtype=unit.dtype, device=unit.device)
        return (identity - unit.mT @ unit).square().sum((-2, -1))


def power(basis: Tensor, core: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    """Factors of ``Q^exponent`` for ``Q = I − basis · core · basisᵀ`` of even rank; orthogonal at every exponent.

    Q acts on span(basis) only: with Z an orthonormal basis of it, ``Q = I + Z (R − I) Zᵀ`` and R is a rotation of
    determinant +1, so ``Q^s = I + Z (R^s − I) Zᵀ`` with the real matrix power. Where R turns a plane by exactly π the
    plane is a choice: consecutive columns of Z are paired (at λ = ∞ these are the Gram–Schmidt columns).
    Computed in float64 on the CPU (r×r work); not differentiable.
    """
    z = torch.linalg.qr(basis.detach().cpu().double()).Q
    inside = z.mT @ basis.detach().cpu().double()
    identity = torch.eye(z.shape[1], dtype=z.dtype)
    rotation = identity - inside @ core.detach().cpu().double() @ inside.mT
    if (rotation + identity).abs().max() < HALF_TURN_TOLERANCE:
        rotation = -identity  # else rounding, not the columns, would choose the planes
    return z.to(basis), (identity - _rotation_power(rotation, exponent)).to(core)


def _rotation_power(rotation: Tensor, exponent: float) -> Tensor:
    """Real power of an orthogonal matrix (r, r) of determinant +1, in float64.

    It is normal, so that its eigenvectors, made orthonormal one after another, are its Schur vectors and each turns by
    an angle of its own; those of half a turn are taken two by two as real planes.
    """
    vectors = torch.linalg.qr(torch.linalg.eig(rotation).eigenvectors).Q
    angles = (vectors.mH @ rotation.to(vectors) @ vectors).diagonal().angle()
    half = angles.abs() > math.pi - 1e-9
    turning, flipped = vectors[:, ~half], vectors[:, half]
    planes = torch.linalg.eigh((flipped @ flipped.mH).real).eigenvectors[:, len(rotation) - flipped.shape[1] :]
    across = planes[:, 1::2] @ planes[:, 0::2].mT
    turn = math.pi * exponent
    half_turns = math.cos(turn) * planes @ planes.mT + math.sin(turn) * (across - across.mT)
    return (turning * torch.polar(torch.ones_like(angles), angles * exponent)[~half] @ turning.mH).real + half_turns


def own_precision(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Within the block autocast leaves products as they are, on the tensor's device, where there is autocast at all."""
    device = tensor.device.type
    able = torch.amp.is_autocast_available(device)  # not on "meta", where shapes are computed
    return torch.autocast(device, enabled=False) if able else contextlib.nullcontext()


def _wy_factor_of(unit: Tensor) -> Tensor:
    with own_precision(unit):
        identity = torch.eye(unit.shape[-1], dtype=unit.dtype, device=unit.device)
        triangle = (unit.mT @ unit).triu(1) + identity / 2
        return torch.linalg.solve_triangular(triangle, identity, upper=True)


def _at_least_float32(u: Tensor) -> Tensor:
    return u if u.dtype in (torch.float32, torch.float64) else u.float()
