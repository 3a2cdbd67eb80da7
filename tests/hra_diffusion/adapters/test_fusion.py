"""Geodesic fusion: agreement with dense logarithms, orthogonality, degenerate spans, and every way to apply it."""

import math

import pytest
import torch
from conftest import pipe_with_two_adapters, relative, stir, tiny_pipe, tiny_unet
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm, logm

from hra_diffusion import interop, pipeline
from hra_diffusion.adapters import activation, attachment, householder, merging
from hra_diffusion.adapters.activation import activate
from hra_diffusion.adapters.attachment import attach
from hra_diffusion.adapters.factors import LayerFactors, adapted_weight
from hra_diffusion.adapters.fusion import fuse, fuse_rotations, karcher_mean
from hra_diffusion.comparison.compare import Variant, compare
from hra_diffusion.comparison.storage import load_comparison, save_comparison
from hra_diffusion.errors import UserError
from hra_diffusion.generation.png import PNG_KEY
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate, generate_batch

HALF = {"a": 0.5, "b": 0.5}


def vectors(d, r, seed, spread=0.4):
    """Columns (d, r) in pairs that differ by about ``spread`` radians: a rotation by angles below about π/2."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(d, r // 2, generator=generator, dtype=torch.float64).repeat_interleave(2, dim=1)
    return base + spread * torch.randn(d, r, generator=generator, dtype=torch.float64)


def rotation(u):
    """(up, down) of the chain of reflections along the columns of u."""
    return householder.low_rank_factors(*householder.reflection_chain(u))


def dense(factors):
    up, down = factors
    return torch.eye(len(up), dtype=up.dtype) + up @ down


def log(matrix):
    return torch.from_numpy(logm(matrix.numpy()).real)


def exp(matrix):
    return torch.from_numpy(expm(matrix.numpy()))


def assert_orthogonal(q, tolerance=1e-10):
    torch.testing.assert_close(q @ q.mT, torch.eye(len(q), dtype=q.dtype), atol=tolerance, rtol=0)
    assert torch.linalg.det(q) > 0


@given(st.integers(8, 40), st.integers(1, 3), st.integers(1, 3), st.integers(0, 10_000), st.floats(0.05, 0.95))
@settings(deadline=None, max_examples=40)
def test_two_rotations_are_fused_along_their_geodesic(d, first, second, seed, t):
    """Against dense logarithms and exponentials of d × d matrices."""
    a, b = rotation(vectors(d, 2 * first, seed)), rotation(vectors(d, 2 * second, seed + 1))
    fused = dense(fuse_rotations([a, b], [1 - t, t]))
    torch.testing.assert_close(fused, dense(a) @ exp(t * log(dense(a).mT @ dense(b))), atol=1e-9, rtol=0)
    assert_orthogonal(fused)
    torch.testing.assert_close(dense(fuse_rotations([b, a], [t, 1 - t])), fused, atol=1e-9, rtol=0)


@pytest.mark.parametrize("strengths", [(0.5, 0.3, 0.2), (1.0, 0.7, 0.8), (0.5, -0.3, 0.2)])
def test_three_rotations_have_their_centre_of_mass_and_the_sum_of_the_strengths(strengths):
    """The mean M has Σ wᵢ log(MᵀQᵢ) = 0, by dense logarithms; a negative strength is the inverse rotation."""
    parts = [rotation(vectors(24, 4, seed)) for seed in range(3)]
    total = sum(map(abs, strengths))
    fused = dense(fuse_rotations(parts, strengths))
    assert_orthogonal(fused)
    mean = exp(log(fused) / total)
    signed = [dense(q) if s > 0 else dense(q).mT for q, s in zip(parts, strengths, strict=True)]
    gradient = sum(abs(s) * log(mean.mT @ q) for q, s in zip(signed, strengths, strict=True))
    assert gradient.norm() < 1e-9
    again = dense(fuse_rotations([parts[i] for i in (2, 0, 1)], [strengths[i] for i in (2, 0, 1)]))
    torch.testing.assert_close(again, fused, atol=1e-9, rtol=0)


def test_rotations_that_commute_are_composed_and_small_ones_nearly():
    u = vectors(30, 8, 0)
    u[15:, :4], u[:15, 4:] = 0, 0  # in orthogonal subspaces
    a, b = rotation(u[:, :4]), rotation(u[:, 4:])
    powers = [exp(s * log(dense(q))) for q, s in ((a, 1.0), (b, 0.6))]
    torch.testing.assert_close(dense(fuse_rotations([a, b], [1.0, 0.6])), powers[0] @ powers[1], atol=1e-9, rtol=0)
    for spread, apart in ((0.01, 0.2), (0.0001, 0.002)):
        a, b = (rotation(vectors(30, 4, seed, spread)) for seed in (1, 2))
        composed = dense(a) @ dense(b)
        change = composed - torch.eye(30).double()
        assert (dense(fuse_rotations([a, b], [1, 1])) - composed).norm() < apart * change.norm()


@pytest.mark.parametrize("case", ["equal", "parallel", "nearly parallel", "contained", "identity", "zero pair", "full"])
def test_degenerate_spans(case):
    u = vectors(12, 4, 0)
    other = {
        "equal": u,
        "parallel": u[:, [1, 0, 3, 2]] * -3,
        "nearly parallel": u + 1e-9 * vectors(12, 4, 1),
        "contained": u[:, :2],
        "identity": u[:, [0, 0]],
        "zero pair": torch.cat([vectors(12, 2, 1), torch.zeros(12, 2).double()], dim=1),
        "full": vectors(12, 12, 1),  # the joint span is everything
    }[case]
    a, b = rotation(u), rotation(other)
    up, down = fuse_rotations([a, b], [0.5, 0.5])
    assert up.shape == (12, min(12, u.shape[1] + other.shape[1])) == down.mT.shape
    fused = dense((up, down))
    assert_orthogonal(fused)
    torch.testing.assert_close(fused, dense(a) @ exp(0.5 * log(dense(a).mT @ dense(b))), atol=1e-7, rtol=0)


def test_half_turns_between_rotations_have_a_midpoint_of_equal_distance():
    """The logarithm is not unique, whichever plane it chooses: halfway lies π/2 from both in every plane."""
    quarter = vectors(10, 2, 0)
    opposite = torch.linalg.qr(vectors(10, 4, 1)).Q  # I − 2 U Uᵀ
    a = rotation(quarter)
    half_turn = torch.eye(10).double() - 2 * opposite @ opposite.mT
    b = half_turn @ dense(a) - torch.eye(10).double(), torch.eye(10).double()
    fused = dense(fuse_rotations([a, b], [0.5, 0.5]))
    assert_orthogonal(fused)
    for q in (dense(a), dense(b)):
        angles = torch.linalg.eigvals(fused.mT @ q).angle().abs().sort().values
        torch.testing.assert_close(angles, torch.tensor([0.0] * 6 + [math.pi / 2] * 4).double(), atol=1e-6, rtol=0)


def test_fused_orthonormal_reflections_stay_orthogonal():
    """HRA at λ = ∞ is half turns alone, in float32."""
    parts = [
        householder.low_rank_factors(*householder.gram_schmidt_chain(vectors(40, 4, seed, 1.0).float()))
        for seed in range(3)
    ]
    for strengths in ((0.2, 0.3, 0.5), (1.0, 1.0, 1.0)):
        assert_orthogonal(dense(fuse_rotations(parts, strengths)).double(), 1e-6)
    torch.testing.assert_close(dense(fuse_rotations([parts[0]] * 2, [0.5, 0.5])), dense(parts[0]), atol=1e-6, rtol=0)


def test_a_chain_with_an_odd_number_of_reflections_is_refused():
    u = vectors(12, 4, 0)
    u[:, 3] = 0
    with pytest.raises(UserError, match="one of its vectors is zero, so that it mirrors instead of rotating"):
        fuse_rotations([rotation(u), rotation(vectors(12, 4, 1))], [0.5, 0.5])


def test_the_mean_of_equal_rotations_is_the_rotation():
    q = torch.linalg.matrix_exp(0.5 * (m := vectors(6, 6, 0)) - 0.5 * m.mT)
    torch.testing.assert_close(karcher_mean([q, q, q], [0.2, 0.3, 0.5]), q, atol=1e-12, rtol=0)


def test_sides_are_fused_apart_and_scales_linearly():
    """``L · diag(m) · W · R``; a side that one adapter has alone gets that one's power."""
    left, first, second = (rotation(vectors(16, 4, seed)) for seed in range(3))
    scale, weight = torch.linspace(-0.5, 2, 16).double(), vectors(16, 16, 4)
    fused = fuse([LayerFactors(right=first, scale=scale, left=left), LayerFactors(right=second)], [0.25, 0.75])
    expected = (
        exp(0.25 * log(dense(left)))
        @ (weight * (0.75 + 0.25 * scale)[:, None])
        @ dense(fuse_rotations([first, second], [0.25, 0.75]))
    )
    torch.testing.assert_close(adapted_weight(weight, fused), expected, atol=1e-9, rtol=0)


def attach_trained(model, method, name, seed, targets="attention", by=0.3, **options):
    attach(model, method, {"rank": 4} | options, name=name, seed=seed, targets=targets)
    stir(attachment.adapter_parameters(model, name).values(), seed, by)


def output(model, batch=2):
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(batch, 4, 8, 8, generator=generator), torch.randn(batch, 6, 32, generator=generator)
    with torch.no_grad():
        return model(x.to(model.dtype), torch.full((batch,), 10), text.to(model.dtype)).sample


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return tiny_unet().eval()


PAIRS = [("hra", "hra"), ("hra", "hoft"), ("hoft", "shoft"), ("shoft", "shoft")]
each_pair = pytest.mark.parametrize(("first", "second"), PAIRS)


@each_pair
def test_live_frozen_and_merged_adapters_are_the_same_in_any_order(unet, first, second):
    attach_trained(unet, first, "a", 0)
    attach_trained(unet, second, "b", 1)
    activate(unet, {"a": 0.7, "b": 0.5})
    composed = output(unet)
    activate(unet, {"a": 0.7, "b": 0.5}, "geodesic")
    live = output(unet)
    assert torch.equal(output(unet), live), "the kept factors are those of the first pass"
    assert relative(live, composed) > 1e-4
    with activation.frozen(unet):
        assert relative(output(unet), live) < 2e-5
        activate(unet, {"a": 0.7, "b": 0.5})
        assert relative(output(unet), composed) < 2e-5, "changed within the block"
    activate(unet, {"b": 0.5, "a": 0.7}, "geodesic")
    assert torch.equal(output(unet), live)
    merging.merge(unet)
    assert relative(output(unet), live) < 2e-5
    merging.unmerge(unet)
    stir(attachment.adapter_parameters(unet, "a").values(), 3)
    assert relative(output(unet), live) > 1e-4, "changed parameters are seen"


@each_pair
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_one_adapter_alone_is_itself_exactly(unet, first, second, strength):
    attach_trained(unet, first, "a", 0, **({"orthogonality": math.inf} if first == "hra" else {}))
    attach_trained(unet, second, "b", 1)
    activate(unet, {"a": strength})
    alone = output(unet)
    for order in (("a", "b"), ("b", "a")):
        activate(unet, {name: strength if name == "a" else 0.0 for name in order}, "geodesic")
        assert torch.equal(output(unet), alone)


def test_a_layer_with_one_adapter_has_it_at_its_own_strength(unet):
    """Elsewhere both are fused; the text projections have "a" alone."""
    attach_trained(unet, "hra", "a", 0)
    paths = list(attachment.adapter_layers(unet, "a"))
    attach_trained(unet, "hra", "b", 1, [path for path in paths if "attn1" in path], rank=2)
    activate(unet, {"a": 0.6, "b": 0.8}, "geodesic")
    live = output(unet)
    with activation.frozen(unet):
        assert relative(output(unet), live) < 2e-5
    merging.merge(unet)
    assert relative(output(unet), live) < 2e-5
    merging.unmerge(unet)
    alone = next(path for path in paths if "attn2" in path)
    layer = unet.get_submodule(alone)
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
    fused = layer(x)
    activate(unet, {"a": 0.6})
    assert torch.equal(layer(x), fused)


def test_singular_values_of_fused_weights_are_those_of_the_base(unet):
    attach_trained(unet, "hra", "a", 0)
    attach_trained(unet, "hoft", "b", 1)
    before = {path: layer.weight.detach().clone() for path, layer in attachment.adapted_layers(unet)}
    activate(unet, {"a": 0.9, "b": 0.8}, "geodesic")
    merging.merge(unet)
    for path, weight in before.items():
        merged = unet.get_submodule(path).weight
        singular = [torch.linalg.svdvals(w.double()) for w in (merged, weight)]
        torch.testing.assert_close(*singular, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("targets", ["attention", "attention+conv"])
def test_groups_of_a_batch_are_fused_apart(unet, targets):
    for name, method, seed in (("a", "shoft", 0), ("b", "hra", 1), ("c", "hoft", 2)):
        attach_trained(unet, method, name, seed, targets, rank=2)
    mixes = [{}, HALF, {"a": 1.0, "b": 1.0, "c": -0.5}, {"c": 0.3}]
    alone = []
    for strengths in mixes:
        activate(unet, strengths, "geodesic")
        alone.append(output(unet, 4))
    expected = torch.cat([own[i : i + 1] for i, own in enumerate(alone)])
    with activation.batch_adapters(unet, [(strengths, 1) for strengths in mixes], "geodesic"):
        assert relative(output(unet, 4), expected) < 1e-5
        with activation.frozen(unet):
            assert relative(output(unet, 4), expected) < 2e-5


def test_fusion_in_low_precision(unet):
    attach_trained(unet, "shoft", "a", 0)
    attach_trained(unet, "hra", "b", 1)
    activate(unet, HALF, "geodesic")
    exact = output(unet)
    unet.to(torch.bfloat16)
    assert relative(output(unet).float(), exact) < 5e-2


@pytest.mark.parametrize(
    ("method", "options"), [("lora", {}), ("moslora", {}), ("dora", {}), ("oft", {}), ("boft", {}),
                            ("hoft", {"approximate_inverse": True})],
)  # fmt: skip
def test_adapters_that_are_no_rotations_are_named(unet, method, options):
    attach_trained(unet, "hra", "a", 0)
    attach_trained(unet, method, "b", 1, **options)
    activate(unet, {"a": 0.5})
    with pytest.raises(UserError, match=r"is for rotations \(HOFT, HRA, SHOFT\), which 'b' is not; use .*compose"):
        activate(unet, HALF, "geodesic")
    with pytest.raises(UserError, match="'b' is not"), activation.batch_adapters(unet, [(HALF, 1)], "geodesic"):
        pass
    assert attachment.state_of(unet).selection == ({"a": 0.5}, "compose"), "unchanged"
    activate(unet, {"b": 1.0}, "geodesic")  # nothing to fuse
    with pytest.raises(UserError, match="unknown fusion 'sum'; use one of compose, geodesic"):
        activate(unet, HALF, "sum")


def test_a_compiled_model_fuses_when_frozen():
    torch.manual_seed(0)
    model, x = (
        torch.nn.Sequential(torch.nn.Linear(12, 12), torch.nn.ReLU(), torch.nn.Linear(12, 12)),
        torch.randn(3, 12),
    )
    for name in ("a", "b"):
        attach_trained(model, "hra", name, ord(name), targets=["0", "2"])
    activate(model, HALF, "geodesic")
    live = model(x)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=r"run it within hra_diffusion\.frozen"):
        compiled(x)
    with activation.frozen(model):
        assert relative(compiled(x), live) < 2e-5


def rotations_pipe():
    """A tiny pipeline with "a" on UNet and text encoder, "b" on the UNet alone."""
    pipe = tiny_pipe()
    for name, parts in (("a", ("unet", "text_encoder")), ("b", ("unet",))):
        for part in parts:
            attach_trained(getattr(pipe, part), "hra", name, ord(name), by=1.0)
    return pipe


def test_images_of_a_batch_may_differ_in_fusion(tmp_path):
    pipe, short = rotations_pipe(), Settings(steps=2)
    mix = (("a", 1.0), ("b", 1.0))
    requests = [
        Request("a dog", 1, mix),
        Request("a dog", 1, mix, fusion="geodesic"),
        Request("a dog", 1, (("a", 1.0),)),
    ]
    images = [image.tobytes() for image in generate_batch(pipe, [*requests, requests[0]], short)]
    assert images[0] == images[3] and len(set(images)) == 3
    (fused,) = generate(pipe, "a dog", dict(mix), 1, settings=short, fusion="geodesic")
    assert fused.info[PNG_KEY]["fusion"] == "geodesic"
    pipeline.activate(pipe, dict(mix), "geodesic")
    (active,) = generate(pipe, "a dog", None, 1, settings=short)
    assert fused.tobytes() == active.tobytes() == images[1]
    comparison = compare(pipe, [Variant("fused", dict(mix), fusion="geodesic")], ["a dog"], [1], short)
    assert comparison.samples[0].image.tobytes() == images[1]
    save_comparison(comparison, tmp_path)
    assert load_comparison(tmp_path).samples[0].request == requests[1]
    with pipeline.disabled(pipe):
        assert pipeline.active_fusion(pipe) == "compose"
    assert pipeline.active_fusion(pipe) == "geodesic" and pipeline.active(pipe) == dict(mix)


def test_a_pipeline_refuses_before_anything_changes():
    pipe = pipe_with_two_adapters()
    pipeline.activate(pipe, {"a": 0.3})
    with pytest.raises(UserError, match="'b' is not"):
        pipeline.activate(pipe, HALF, fusion="geodesic")
    with pytest.raises(UserError, match="'b' is not"):
        generate(pipe, "a dog", HALF, fusion="geodesic")
    assert pipeline.active(pipe) == {"a": 0.3}


@pytest.mark.parametrize("format", ["kohya", "diffusers", "peft", "merged"])
@pytest.mark.parametrize("fusion", ["compose", "geodesic"])
def test_an_export_of_several_adapters_equals_the_live_ones(format, fusion, tmp_path):
    from conftest import everything
    from loaders import EXACT, with_diffusers, with_from_pretrained, with_peft

    pipe = rotations_pipe()
    pipeline.activate(pipe, {"b": 0.5, "a": 0.7}, fusion)
    live = everything(pipe)
    place = tmp_path / ("x" if format in ("peft", "merged") else "x.safetensors")
    done = interop.export(pipe, {"b": 0.5, "a": 0.7}, format, place, fusion=fusion)
    assert done.error == 0 and (done.form, done.rank) == (("weights", None) if format == "merged" else ("LoRA", 8))
    load = {"peft": with_peft, "merged": with_from_pretrained}.get(format, with_diffusers)
    assert relative(everything(load("sd", done.path)), live) < EXACT
