"""Householder chains in WY form: equality with the chain of reflections, orthogonality, initialisation, powers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hra_diffusion.adapters import householder
from hra_diffusion.adapters.factors import LayerFactors, adapted_weight, add_low_rank, rotate
from hra_diffusion.adapters.rotation import Rotation, paired


def dense(basis, core):
    return torch.eye(basis.shape[0], dtype=basis.dtype) - basis @ core @ basis.mT


def rotated(rows, factors):
    up, down = (factor.to(rows.dtype) for factor in householder.low_rank_factors(*factors))
    return add_low_rank(rows, rows, (up, down))


def chain(u):
    """H_1 … H_r as a product of dense matrices."""
    q = torch.eye(u.shape[0], dtype=u.dtype)
    for column in u.mT:
        unit = column / column.norm()
        q = q @ (torch.eye(len(unit), dtype=u.dtype) - 2 * torch.outer(unit, unit))
    return q


def vectors(d, r, seed, dtype=torch.float64):
    return torch.randn(d, r, generator=torch.Generator().manual_seed(seed), dtype=dtype)


cases = st.tuples(st.integers(2, 48), st.integers(1, 12), st.integers(0, 10_000)).filter(lambda c: c[1] <= c[0])


@given(cases)
@settings(deadline=None, max_examples=60)
def test_wy_form_is_the_chain_of_reflections_and_orthogonal(case):
    u = vectors(*case)
    q = dense(*householder.reflection_chain(u))
    torch.testing.assert_close(q, chain(u), atol=1e-12, rtol=0)
    torch.testing.assert_close(q @ q.mT, torch.eye(case[0], dtype=q.dtype), atol=1e-12, rtol=0)


@given(st.integers(4, 40), st.integers(1, 6), st.integers(0, 10_000), st.sampled_from([0.0, 1e-12, 1e-7, 1e-3]))
@settings(deadline=None, max_examples=60)
def test_coincident_and_nearly_parallel_vectors(d, pairs, seed, apart):
    u = vectors(d, 1, seed).repeat(1, 2 * pairs) + apart * vectors(d, 2 * pairs, seed + 1)
    q = dense(*householder.reflection_chain(u))
    torch.testing.assert_close(q, chain(u), atol=1e-11, rtol=0)


@given(cases, st.floats(0.01, 100))
@settings(deadline=None, max_examples=20)
def test_only_directions_matter(case, scale):
    u = vectors(*case)
    torch.testing.assert_close(householder.wy_factor(u * scale), householder.wy_factor(u), atol=1e-10, rtol=1e-10)


def test_rows_are_mapped_without_a_dense_matrix():
    u, rows = vectors(32, 6, 0), vectors(5, 32, 1)
    up, down = householder.low_rank_factors(*householder.reflection_chain(u))
    q = chain(u)
    torch.testing.assert_close(rotate(rows, (up, down)), rows @ q.mT)
    torch.testing.assert_close(add_low_rank(rows, rows, (up, down)), rows @ q.mT)
    torch.testing.assert_close(adapted_weight(rows, LayerFactors(right=(up, down))), rows @ q)


def test_bfloat16_rows_keep_their_dtype_and_its_precision():
    u, rows = vectors(64, 8, 0, torch.float32), vectors(16, 64, 1, torch.float32)
    exact = rows @ chain(u.double()).float().mT
    with torch.autocast("cpu", torch.bfloat16):
        t = householder.wy_factor(u)
    assert t.dtype == torch.float32, "the r×r part stays in float32 under autocast"
    low = rotated(rows.bfloat16(), householder.reflection_chain(u))
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).norm() / exact.norm() < 2e-2


def test_paired_columns_are_the_identity_with_gradients():
    u = paired((40, 8), torch.Generator().manual_seed(0)).double().requires_grad_()
    q = dense(*householder.reflection_chain(u))
    torch.testing.assert_close(q.detach(), torch.eye(40, dtype=torch.float64), atol=1e-12, rtol=0)
    (q * vectors(40, 40, 1)).sum().backward()
    assert u.grad is not None and u.grad.norm() > 0.1


def test_moving_one_of_a_pair_rotates_a_plane_to_first_order():
    u, step = torch.zeros(6, 2, dtype=torch.float64), 1e-6
    u[0] = 1
    u[1, 1] = step
    rotated_by = dense(*householder.reflection_chain(u)) - torch.eye(6, dtype=torch.float64)
    plane = torch.zeros(6, 6, dtype=torch.float64)
    plane[0, 1], plane[1, 0] = 2 * step, -2 * step
    torch.testing.assert_close(rotated_by, plane, atol=1e-11, rtol=0)


@pytest.mark.parametrize(("rank", "published"), [(4, 0.73), (8, 2.62), (16, 6.13)])
def test_hofts_published_approximation_is_not_the_identity_beyond_rank_two(rank, published):
    """The published distances ‖Q − I‖ are single samples, within the range of twenty samples."""
    distances = []
    for seed in range(20):
        basis, core = householder.approximate_chain(paired((320, rank), torch.Generator().manual_seed(seed)).double())
        distances.append(float((basis @ core @ basis.mT).norm()))
    assert min(distances) < published < max(distances)
    basis, core = householder.approximate_chain(paired((320, 2), torch.Generator().manual_seed(0)).double())
    assert float((basis @ core @ basis.mT).norm()) < 1e-12


def test_gram_schmidt_is_never_the_identity_and_needs_unpaired_columns():
    u = vectors(40, 6, 0)
    basis, core = householder.gram_schmidt_chain(u)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(6, dtype=torch.float64), atol=1e-12, rtol=0)
    assert float((basis @ core @ basis.mT).norm()) == pytest.approx(2 * 6**0.5)
    assert torch.linalg.matrix_rank(Rotation(40, 6, torch.Generator(), "orthonormal").u) == 6


def test_gradients_agree_with_finite_differences():
    u, rows = vectors(7, 4, 3).requires_grad_(), vectors(3, 7, 4)
    for build in (householder.reflection_chain, householder.gram_schmidt_chain):
        assert torch.autograd.gradcheck(lambda u, build=build: rotated(rows, build(u)), u)


@given(st.integers(4, 32), st.integers(1, 4), st.integers(0, 10_000), st.floats(-1.5, 1.5), st.floats(-1.5, 1.5))
@settings(deadline=None, max_examples=50)
def test_powers_stay_orthogonal_and_add_up(d, pairs, seed, first, second):
    factors = householder.reflection_chain(vectors(d, min(2 * pairs, d // 2 * 2), seed))
    a, b, both = (dense(*householder.power(*factors, s)) for s in (first, second, first + second))
    torch.testing.assert_close(a @ a.mT, torch.eye(d, dtype=a.dtype), atol=1e-9, rtol=0)
    torch.testing.assert_close(a @ b, both, atol=1e-7, rtol=0)


@pytest.mark.parametrize("build", [householder.reflection_chain, householder.gram_schmidt_chain])
def test_power_is_the_base_at_zero_and_the_adapter_at_one(build):
    factors = build(vectors(20, 6, 5))
    torch.testing.assert_close(dense(*householder.power(*factors, 1.0)), dense(*factors), atol=1e-10, rtol=0)
    torch.testing.assert_close(dense(*householder.power(*factors, 0.0)), torch.eye(20).double(), atol=1e-10, rtol=0)


def test_half_turns_at_infinite_lambda_pair_consecutive_columns():
    """Also in float32, where rounding would otherwise choose the planes."""
    basis, core = householder.gram_schmidt_chain(vectors(320, 6, 0, torch.float32))
    inside = basis.mT @ dense(*householder.power(basis, core, 0.5)) @ basis
    blocks = torch.block_diag(*[torch.ones(2, 2)] * 3)
    assert (inside * (1 - blocks)).abs().max() < 1e-5, "columns 1 and 2 rotate together, 3 and 4, 5 and 6"
    torch.testing.assert_close(inside @ inside, -torch.eye(6), atol=1e-5, rtol=0)


def test_small_moves_survive_a_basis_in_bfloat16():
    """Equal pairs act through their differences, which are computed before the basis is rounded."""
    u = paired((320, 8), torch.Generator().manual_seed(0))
    u = u + 0.003 * u.norm() / u.numel() ** 0.5 * vectors(320, 8, 1, torch.float32)
    rows = vectors(64, 320, 2, torch.float32).bfloat16()
    basis, core = householder.reflection_chain(u)
    effect = (rows.double() @ chain(u.double()).mT) - rows.double()
    low = (rows @ basis.bfloat16()) @ (basis @ core).mT.bfloat16()
    assert (-low.double() - effect).norm() / effect.norm() < 1e-2


@pytest.mark.parametrize("with_offset", [False, True])
def test_first_and_second_derivatives_of_a_rotation_of_rows(with_offset):
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 6), (6, 2), (2, 6), (2,))[: 4 if with_offset else 3]
    inputs = [torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True) for shape in shapes]

    def function(x, up, down, offset=None):
        return rotate(x, (up, down), offset)

    assert torch.autograd.gradcheck(function, inputs) and torch.autograd.gradgradcheck(function, inputs)
