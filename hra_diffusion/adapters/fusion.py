"""Fuse the orthogonal adapters of one layer along geodesics of the rotation group, in place of composing them.

Rotations Qᵢ, products of reflections along the columns of Uᵢ, and their quotients ``QᵢᵀQⱼ`` differ from the identity
only inside the span of all columns. With an orthonormal basis Z (d, k) of this span, k ≤ Σ rᵢ, each rotation is
``Qᵢ = I + Z (Rᵢ − I) Zᵀ`` with a rotation Rᵢ (k, k): means, logarithms and powers are those of the small matrices.

Sources: Manton, "A globally convergent numerical algorithm for computing the centre of mass on compact Lie groups"
(ICARCV 2004); Moakher, "Means and averaging in the group of rotations" (SIAM J. Matrix Anal. Appl. 24, 2002). OrthoFuse
(arXiv 2604.05183) approximates geodesics for block-diagonal adapters, and changes the spectrum afterwards.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hra_diffusion.adapters.factors import Factors, LayerFactors
from hra_diffusion.adapters.householder import rotation_log
from hra_diffusion.adapters.registry import Adapter
from hra_diffusion.adapters.state import Fusion
from hra_diffusion.errors import UserError

ITERATIONS, TOLERANCE = 200, 1e-12
"""Limits of ``karcher_mean``: steps, and the norm of the last step in radians."""


def factors_of(adapters: Sequence[tuple[Adapter, float]], weight: Tensor, fusion: Fusion) -> list[LayerFactors]:
    """What adapters with these strengths do to a layer's weight (d_out, d_in), as factors to apply in order."""
    used = [(adapter, strength) for adapter, strength in adapters if strength]
    if fusion == "geodesic" and len(used) > 1:
        return [fuse([adapter.own_factors() for adapter, _ in used], [strength for _, strength in used])]
    return [adapter.own_factors(strength).with_weight(weight, strength) for adapter, strength in adapters]


def fuse(adapters: Sequence[LayerFactors], strengths: Sequence[float]) -> LayerFactors:
    """The adapters of one layer as one: ``L · diag(m) · W · R``, with the left rotations fused to L, the right to R.

    Adapters without a rotation on a side don't count there: one alone has its own power, ``Q^s``. Scales are averaged
    linearly, ``m = 1 + Σ sᵢ (mᵢ − 1)``, as the strength of one adapter is, because a trained scale may be negative.
    The factors are those at strength 1, and have rotations and scales only. Not differentiable.
    """
    each = list(zip(adapters, strengths, strict=True))
    scales = [s * (factors.scale.detach() - 1) for factors, s in each if factors.scale is not None]
    scale = 1 + torch.stack(scales).sum(0) if scales else None
    right, left = (
        fuse_rotations([pair for pair, _ in own], [s for _, s in own]) if own else None
        for own in (
            [(factors.right, s) for factors, s in each if factors.right],
            [(factors.left, s) for factors, s in each if factors.left],
        )
    )
    return LayerFactors(right=right, left=left, scale=scale)


def fuse_rotations(rotations: Sequence[Factors], strengths: Sequence[float]) -> Factors:
    """(up (d, k), down (k, d)), k = min(Σ rᵢ, d), of the fused rotation of ``Qᵢ = I + upᵢ · downᵢ``.

    It is ``M^S`` with ``S = Σ |sᵢ|`` and the Karcher mean M of the rotations with weights ``|sᵢ| / S``; a negative
    strength stands for the inverse rotation. So

    - strengths that sum to 1 give the weighted mean, for two rotations ``Q₁ exp(s₂ log(Q₁ᵀQ₂))``: the geodesic;
    - the sum is what strength is for one adapter: how far from the identity, the base model, the rotation is carried
      along a geodesic. Strengths 1 and 1 apply both adapters in full, as their composition does;
    - rotations that commute give ``exp(Σ sᵢ log Qᵢ)``, their composition, and small angles give it to first order;
    - the order of the adapters does not matter.

    Computed in float64 on the CPU, returned in the dtype and on the device of the factors. A half turn in a quotient,
    or in M if S is not 1, has no direction of its own (see ``rotation_log``): the result is one of several equally
    good ones. Raises UserError for a matrix that mirrors, as a chain does if an odd number of its vectors is 0.
    """
    total = sum(abs(s) for s in strengths)
    columns = torch.cat([down.detach().mT.cpu().double() for _, down in rotations], dim=1)
    z = torch.linalg.qr(columns).Q  # orthonormal, and spans all columns also if they are dependent or 0
    inside = [_inside(z, up.detach(), down.detach()) for up, down in rotations]
    signed = [r if s > 0 else r.mT for r, s in zip(inside, strengths, strict=True)]
    fused = karcher_mean(signed, [abs(s) / total for s in strengths])
    if total != 1:
        fused = torch.matrix_exp(total * rotation_log(fused))
    like = rotations[0][0]
    return (z @ (fused - torch.eye(len(fused), dtype=fused.dtype))).to(like), z.mT.to(like)


def karcher_mean(rotations: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted Riemannian centre of mass M of rotations (k, k), in float64: ``Σ wᵢ log(MᵀRᵢ) = 0``, ``Σ wᵢ = 1``.

    By gradient descent with step 1, which converges from any start (Manton 2004); two rotations need one step. It is
    unique if the rotations lie within a ball of radius π/2.
    """
    mean = rotations[0]
    for _ in range(ITERATIONS):
        logs = [w * rotation_log(mean.mT @ rotation) for rotation, w in zip(rotations, weights, strict=True)]
        step = torch.stack(logs).sum(0)
        mean = mean @ torch.matrix_exp(step)
        if step.norm() < TOLERANCE:
            break
    return mean


def _inside(z: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The rotation R (k, k) of ``I + up · down`` in the basis z (d, k): the nearest orthogonal matrix."""
    change = (z.mT @ up.cpu().double()) @ (down.cpu().double() @ z)
    U, _, Vh = torch.linalg.svd(torch.eye(len(change), dtype=change.dtype) + change)
    rotation = U @ Vh
    if torch.linalg.det(rotation) < 0:
        raise UserError(
            "an adapter can't be fused: one of its vectors is zero, so that it mirrors instead of rotating; "
            'leave it out, or use fusion "compose"'
        )
    return rotation
