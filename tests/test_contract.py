"""Contract of all registered methods, on all kinds of models."""

import copy
import itertools

import pytest
import torch
from conftest import relative, stir, tiny_llama, tiny_text_encoder, tiny_unet

from hra_diffusion.adapters import (
    activation,
    adapter_file,
    attachment,
    fingerprint,
    loading,
    merging,
    model_hooks,
    registry,
)
from hra_diffusion.adapters.activation import activate
from hra_diffusion.adapters.attachment import attach, detach
from hra_diffusion.adapters.layer import weight_with_adapters
from hra_diffusion.adapters.linear_map import as_matrix
from hra_diffusion.adapters.targets import find_targets

VARIANTS = [
    ("lora", {"rank": 4, "alpha": 8}),
    ("lora", {"rank": 4, "init": "pissa", "rank_stabilized": True}),
    ("moslora", {"rank": 4, "mixer": "kaiming"}),
    ("hra", {"rank": 4, "orthogonality": 1e-3}),
    ("hra", {"rank": 4, "orthogonality": float("inf")}),
    ("hoft", {"rank": 4, "approximate_inverse": True}),
    ("oft", {"rank": 4, "cayley_neumann": True}),
    *((name, {"rank": 4}) for name in registry.method_names()),
]
FORMS = [
    ("lora", {"rank": 4, "init": "pissa", "rank_stabilized": True}),
    *((name, {"rank": 4}) for name in ("hra", "shoft", "dora", "boft")),
]
"""A variant for each form of an adapter's forward pass: products of two factors, a rotation of the input, rotations of
both sides with a magnitude, a magnitude that depends on the weight, and blocks."""


def short_id(value):
    return getattr(value, "__name__", str(value).replace(" ", ""))


each_variant = pytest.mark.parametrize(("method", "options"), VARIANTS, ids=short_id)
each_form = pytest.mark.parametrize(("method", "options"), FORMS, ids=short_id)


def form_by(name, values):
    """Parametrise a test with each form by each value, and with every other variant by one of them in turn."""
    values, others = list(values), [variant for variant in VARIANTS if variant not in FORMS]
    cases = [(*form, value) for form in FORMS for value in values]
    cases += [(*variant, values[i % len(values)]) for i, variant in enumerate(others)]
    return pytest.mark.parametrize(("method", "options", name), cases, ids=short_id)


def unet_input(model, batch=2):
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(batch, 4, 8, 8, generator=g), torch.randn(batch, 6, 32, generator=g)
    return model(x.to(model.dtype), torch.full((batch,), 10), text.to(model.dtype)).sample


def tokens_input(model, batch=2):
    ids = torch.randint(0, 60, (batch, 9), generator=torch.Generator().manual_seed(1))
    output = model(ids)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


MODELS = {
    "unet": (tiny_unet, unet_input),
    "text_encoder": (tiny_text_encoder, tokens_input),
    "llama": (tiny_llama, tokens_input),
}


@pytest.fixture(params=MODELS)
def model_and_run(request):
    build, run = MODELS[request.param]
    torch.manual_seed(0)
    return build().eval(), run


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return tiny_unet().eval()


def attach_trained(model, method, options, name="a", seed=0):
    attach(model, method, options, name=name, seed=seed)
    stir(attachment.adapter_parameters(model, name).values(), seed)


@each_variant
def test_starts_at_the_base_where_promised(model_and_run, method, options):
    model, run = model_and_run
    with torch.no_grad():
        base = run(model)
        attach(model, method, options)
        start = run(model)
    config = registry.get_method(method).parse(options)
    assert (relative(start, base) < 1e-5) == registry.get_method(method).starts_at_base(config)


@each_variant
def test_gradients_reach_every_adapter_parameter_and_nothing_else(model_and_run, method, options):
    model, run = model_and_run
    attach_trained(model, method, options)
    (run(model).square().mean() + (attachment.penalty(model, "a") or 0)).backward()
    adapters = attachment.adapter_parameters(model, "a")
    trained = [p for p in adapters.values() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    ours = {id(p) for p in adapters.values()}
    assert all(p.grad is None for p in model.parameters() if id(p) not in ours)


@each_variant
def test_detach_restores_the_model(model_and_run, method, options):
    model, run = model_and_run
    before = {key: value.clone() for key, value in model.state_dict().items()}
    classes = [type(m) for m in model.modules()]
    trainable = [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        base = run(model)
        attach_trained(model, method, options)
        assert set(before) <= set(model.state_dict()), "the base's own names don't change while adapters are attached"
        detach(model)
        assert torch.equal(run(model), base)
    assert [type(m) for m in model.modules()] == classes
    assert [p.requires_grad for p in model.parameters()] == trainable
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)


@each_variant
def test_the_low_rank_update_is_exact(model_and_run, method, options):
    """W′ = diag(scale) (W + up · down)."""
    model, _ = model_and_run
    attach_trained(model, method, options)
    layers = attachment.adapter_layers(model, "a").items()
    for (path, adapter), strength in itertools.product(layers, (1.0, 0.4, -0.5)):
        weight = as_matrix(model.get_submodule(path)).detach().double()
        with torch.no_grad():
            up, down, scale = adapter.low_rank(weight, strength)
            expected = adapter.adapted_weight(weight, strength)
        scale = torch.ones(len(weight)) if scale is None else scale
        assert relative(scale[:, None] * (weight + up @ down), expected) < 1e-6
        full = adapter.own_factors().blocks is not None
        assert up.shape[1] == down.shape[0] <= (min(weight.shape) if full else 2 * adapter.config.rank)


@each_variant
def test_weight_path_equals_activation_path(model_and_run, method, options):
    model, run = model_and_run
    attach_trained(model, method, options)
    for strength in (1.0, 0.4, -0.5):
        activate(model, {"a": strength})
        with_gradients = run(model).detach()
        with torch.no_grad():
            live = run(model)
            merging.merge(model)
            merged = run(model)
            merging.unmerge(model)
        assert relative(merged, live) < 2e-5, strength
        assert relative(merged, with_gradients) < 2e-5, strength


@form_by("targets", ["attention", "attention+conv"])
def test_frozen_adapters_have_the_same_outputs(unet, method, options, targets):
    """Frozen adapters run as one low-rank update."""

    def both_ways():
        with activation.batch_adapters(unet, [({"a": 0.7, "b": 1.0}, 1), ({}, 1), ({"b": -0.5}, 2)]):
            live = unet_input(unet, 4).detach()
            with torch.no_grad(), activation.frozen(unet):
                frozen = unet_input(unet, 4)
        assert relative(frozen, live) < 2e-5
        return frozen

    def attach_moved(name, kind, chosen, seed):
        attach(unet, kind, chosen, name=name, seed=seed, targets=targets)
        stir(attachment.adapter_parameters(unet, name).values(), seed)

    attach_moved("a", method, options, 0)
    attach_moved("b", "shoft", {"rank": 2}, 1)
    first = both_ways()
    stir(attachment.adapter_parameters(unet, "a").values(), 2)
    second = both_ways()
    detach(unet, "b")
    attach_moved("b", "hoft", {"rank": 2}, 3)
    third = both_ways()
    assert relative(second[:1], first[:1]) > 1e-3 and torch.equal(second[1:], first[1:])
    assert relative(third[2:], second[2:]) > 1e-3


@each_variant
def test_unmerge_restores_the_weights_bit_for_bit(unet, method, options):
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    attach_trained(unet, method, options)
    merging.merge(unet)
    merged = unet.state_dict()
    assert any(not torch.equal(merged[key], value) for key, value in before.items())
    with pytest.raises(ValueError, match="unmerge"):
        activate(unet, {"a": 0.5})
    merging.unmerge(unet)
    after = unet.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_cast_while_merged_reaches_the_original_weights(unet):
    attach_trained(unet, "lora", {"rank": 2})
    merging.merge(unet)
    unet.to(torch.float16)
    merging.unmerge(unet)
    assert {parameter.dtype for name, parameter in unet.named_parameters() if "@" not in name} == {torch.float16}


def test_the_fingerprint_does_not_change_while_merged(unet):
    attach_trained(unet, "lora", {"rank": 2})
    before = fingerprint.adapter_fingerprint({"unet": unet}, "a")
    merging.merge(unet)
    assert fingerprint.adapter_fingerprint({"unet": unet}, "a") == before


@each_variant
def test_strength_zero_is_the_base_exactly_and_one_the_adapter(unet, method, options):
    with torch.no_grad():
        base = unet_input(unet)
        attach_trained(unet, method, options)
        full = unet_input(unet)
        activate(unet, {"a": 0.0})
        assert torch.equal(unet_input(unet), base)
        activate(unet, {"a": 0.9999})
        assert relative(unet_input(unet), full) < 1e-3
    assert relative(full, base) > 1e-3


@pytest.mark.parametrize(("magnitude", "strength"), [(0.0, 1.0), (0.5, 2.0), (-1.0, 0.5)])
def test_outputs_that_shoft_scales_to_zero_are_the_same_at_inference(unet, magnitude, strength):
    attach_trained(unet, "shoft", {"rank": 4})
    for layer in attachment.adapter_layers(unet, "a").values():
        layer.magnitude.data[::2] = magnitude
    activate(unet, {"a": strength})
    trained = unet_input(unet)
    with torch.no_grad(), activation.frozen(unet):
        assert relative(unet_input(unet), trained) < 1e-3


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("hra", {"rank": 4}),
        ("hra", {"rank": 4, "orthogonality": float("inf")}),
        ("hoft", {"rank": 4}),
        ("oft", {"rank": 4}),
    ],
)
@pytest.mark.parametrize("strength", [-0.5, 0.3, 0.7, 1.0, 1.2])
def test_orthogonal_methods_stay_orthogonal_at_every_strength(unet, method, options, strength):
    attach_trained(unet, method, options)
    for _, layer in attachment.adapted_layers(unet):
        weight = as_matrix(layer).double()
        adapted = weight_with_adapters(layer, (("a", strength),)).double()
        before, after = (torch.linalg.svdvals(w) for w in (weight, adapted))
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5, msg="the singular values of W don't change")


@each_variant
def test_save_and_load(tmp_path, unet, method, options):
    other = copy.deepcopy(unet)
    attach_trained(unet, method, options)
    config = registry.get_method(method).parse(options)
    info = adapter_file.AdapterInfo(
        name="a",
        method=method,
        options=config.model_dump(),
        base="tiny",
        fingerprint=fingerprint.adapter_fingerprint({"unet": unet}, "a"),
        trigger="sks",
        class_noun="dog",
    )
    adapter_file.save(tmp_path / "a.safetensors", {"unet": unet}, info)
    again = loading.load(tmp_path / "a.safetensors", {"unet": other})
    assert again == info.model_copy(update={"options": again.options})
    assert registry.get_method(method).parse(again.options) == config
    with torch.no_grad():
        assert torch.equal(unet_input(other), unet_input(unet))


@form_by("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_low_precision(unet, method, options, dtype):
    """Casting the model leaves its adapters in float32."""
    with torch.no_grad():
        attach_trained(unet, method, options)
        exact = unet_input(unet)
        unet.to(dtype)
        assert {p.dtype for p in attachment.adapter_parameters(unet, "a").values()} == {torch.float32}
        assert relative(unet_input(unet).float(), exact) < 5e-2


@each_variant
def test_autocast(unet, method, options):
    with torch.no_grad():
        attach_trained(unet, method, options)
        exact = unet_input(unet)
        with torch.autocast("cpu", torch.bfloat16):
            assert relative(unet_input(unet).float(), exact) < 5e-2


@each_variant
def test_gradient_checkpointing_gives_the_same_gradients(method, options):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        unet = tiny_unet().train()
        attach_trained(unet, method, options)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet_input(unet).square().mean().backward()
        gradients.append([p.grad for p in attachment.adapter_parameters(unet, "a").values() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@form_by("dtype", [torch.float32, torch.bfloat16])
def test_factors_prepared_together_equal_those_of_each_layer(unet, method, options, dtype):
    """Outputs and gradients of two accumulated batches, against a copy whose layers prepare their own factors."""
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    attach_trained(unet.to(dtype), method, options)
    separate = copy.deepcopy(unet)
    model_hooks.hooks_of(separate).remove()
    outputs = []
    for model in (unet, separate):
        for _ in range(2):
            outputs.append(unet_input(model))
            outputs[-1].float().square().mean().backward()
    assert relative(outputs[1], outputs[3]) < tolerance
    parameters = attachment.adapter_parameters(separate, "a")
    for key, parameter in attachment.adapter_parameters(unet, "a").items():
        assert not parameter.requires_grad or relative(parameter.grad, parameters[key].grad) < tolerance, key


def test_a_checkpointed_text_encoder_has_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = tiny_text_encoder().train()
        attach_trained(encoder, "hra", {"rank": 4})
        if checkpointing:
            encoder.activation_checkpointing_enable()
        tokens_input(encoder).square().mean().backward()
        gradients.append([p.grad for p in attachment.adapter_parameters(encoder, "a").values()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@each_variant
def test_groups_of_a_batch_have_their_own_adapters(unet, method, options):
    attach_trained(unet, method, options)
    attach_trained(unet, "lora", {"rank": 2}, name="b", seed=3)
    alone = []
    with torch.no_grad():
        for strengths in ({}, {"a": 1.0}, {"b": 0.5}):
            activate(unet, strengths)
            alone.append(unet_input(unet, 4))
        with activation.batch_adapters(unet, [({}, 1), ({"a": 1.0}, 2), ({"b": 0.5}, 1)]):
            together = unet_input(unet, 4)
    expected = torch.cat([alone[0][:1], alone[1][1:3], alone[2][3:]])
    assert relative(together, expected) < 1e-5
    with torch.no_grad(), activation.batch_adapters(unet, [({}, 1), ({"a": 1.0}, 1)]):
        repeated = unet_input(unet, 4)
    assert relative(repeated, torch.cat([alone[0][:1], alone[1][1:2], alone[0][2:3], alone[1][3:]])) < 1e-5


@each_variant
def test_adapters_compose_in_order(unet, method, options):
    attach_trained(unet, method, options)
    attach_trained(unet, "hra", {"rank": 2}, name="b", seed=3)
    activate(unet, {"a": 0.7, "b": 1.0})
    with torch.no_grad():
        live = unet_input(unet)
        merging.merge(unet)
        assert relative(unet_input(unet), live) < 2e-5


@each_variant
def test_the_seed_determines_the_initial_values(method, options):
    def start(seed):
        torch.manual_seed(0)
        unet = tiny_unet()
        attach(unet, method, options, seed=seed)
        return torch.cat([p.detach().flatten() for p in attachment.adapter_parameters(unet, "default").values()])

    drawn = options.get("init") != "pissa" and method not in ("oft", "boft")  # these start at zero
    assert torch.equal(start(5), start(5)) and torch.equal(start(5), start(6)) != drawn


@each_variant
@pytest.mark.parametrize("targets", ["attention+feed-forward", "attention+conv"])
def test_feed_forward_and_conv_layers(unet, method, options, targets):
    if targets == "attention+conv":  # stride, padding and dilation must be those of the layer
        conv = unet.down_blocks[0].resnets[0].conv2
        conv.dilation, conv.padding = (2, 1), (2, 1)
    paths = attach(unet, method, options, name="a", targets=targets)
    assert len(paths) > len(find_targets(unet, "attention"))
    stir(attachment.adapter_parameters(unet, "a").values())
    with torch.no_grad():
        live = unet_input(unet)
        merging.merge(unet)
        assert relative(unet_input(unet), live) < 2e-5


def test_parameter_counts_are_the_published_ones():
    """The published counts over Σd_in and Σd_out, for the tiny UNet."""
    rows = {"lora": 1, "moslora": 1, "hoft": 1, "hra": 0, "shoft": 1}
    for method, both_sides in rows.items():
        unet = tiny_unet()
        attach(unet, method, {"rank": 4})
        shapes = [as_matrix(layer).shape for _, layer in attachment.adapted_layers(unet)]
        d_out, d_in = (sum(side) for side in zip(*shapes, strict=True))
        extra = {"moslora": 16 * len(shapes), "shoft": d_out}.get(method, 0)
        count = sum(p.numel() for p in attachment.adapter_parameters(unet, "default").values())
        assert count == 4 * (d_in + both_sides * d_out) + extra
