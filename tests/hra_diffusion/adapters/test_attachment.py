"""What can be adapted, what is refused and how that is said."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_module
from conftest import relative, stir, tiny_text_encoder, tiny_unet

from hra_diffusion.adapters import activation, attachment, merging, registry
from hra_diffusion.adapters.activation import activate
from hra_diffusion.adapters.attachment import attach, detach
from hra_diffusion.adapters.targets import find_targets
from hra_diffusion.errors import UserError


@pytest.fixture
def unet():
    return tiny_unet()


def test_attention_projections_are_the_default_target(unet):
    paths = find_targets(unet)
    assert len(paths) == 32, "4 transformer blocks × (self + cross) attention × (q, k, v, out)"
    assert all(path.rpartition("attn")[2].split(".", 1)[1] in ("to_q", "to_k", "to_v", "to_out.0") for path in paths)
    assert len(find_targets(tiny_text_encoder())) == 8


def test_a_pattern_chooses_layers(unet):
    assert attach(unet, "hra", {"rank": 2}, targets=r"mid_block.*attn2\.to_[kv]") == [
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "dora"}, "known methods: hoft, hra, lora, moslora, shoft"),
        ({"method": "hra", "options": {"rank": 3}}, "even.*use 4"),
        ({"method": "hoft", "options": {"rank": 5}}, "even"),
        ({"method": "hra", "options": {"rank": 64}}, "rank 64 is too large for .*, a 32 to 32 layer"),
        ({"method": "lora", "options": {"rank": 0}}, "rank.*greater than or equal to 1"),
        ({"method": "lora", "options": {"ranks": 4}}, "no option 'ranks'"),
        ({"method": "lora", "options": {"alpha": "much"}}, "alpha.*number.*'much'"),
        ({"method": "hra", "targets": "nowhere"}, "matches the target 'nowhere'; use one of attention"),
        (
            {"method": "hra", "targets": "*to_q"},
            "'\\*to_q' is not a valid regular expression .*'.\\*to_q' matches all layers",
        ),
        ({"method": "hra", "targets": r".*norm1"}, "no weight matrix to adapt; only linear and conv"),
        ({"method": "hra", "name": "../up"}, "letters, digits"),
        ({"method": "hra", "targets": ["mid_block.lost"]}, "no layer mid_block.lost"),
    ],
)
def test_wrong_requests_say_what_is_wrong_and_leave_the_model_alone(unet, arguments, message):
    before = copy.deepcopy(unet.state_dict())
    with pytest.raises(UserError, match=message):
        attach(unet, **arguments)
    assert attachment.adapter_names(unet) == [] and list(unet.state_dict()) == list(before)


def test_grouped_convolutions_are_refused():
    with pytest.raises(UserError, match="grouped convolution"):
        attach(torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=2)), "lora", {"rank": 1}, targets="0")


def test_adapters_come_before_offloading(unet):
    """One that is put on afterwards would never be called; without the hooks it is again, and can be taken off."""
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 7, 32)
    with torch.no_grad():
        base = unet(*inputs).sample
        cpu_offload(unet, torch.device("cpu"))
        with pytest.raises(UserError, match="offloaded already; attach adapters first, then offload"):
            attach(unet, "hra")
        remove_hook_from_module(unet, recurse=True)
        attach(unet, "hra")
        stir(attachment.adapter_parameters(unet, "default").values())
        adapted = unet(*inputs).sample
        assert relative(adapted, base) > 1e-3
        cpu_offload(unet, torch.device("cpu"))
        assert relative(unet(*inputs).sample, adapted) < 1e-5
        remove_hook_from_module(unet, recurse=True)
        detach(unet)
        assert torch.equal(unet(*inputs).sample, base)


def test_names_are_unique_and_must_exist(unet):
    attach(unet, "lora", {"rank": 2}, name="keys")  # also a name of ModuleDict's own
    with pytest.raises(UserError, match="'keys' is on this model already"):
        attach(unet, "hra", {"rank": 2}, name="keys")
    with pytest.raises(UserError, match=r"no adapter named 'b'.*adapters: keys"):
        activate(unet, {"b": 1.0})
    with pytest.raises(UserError, match="no adapter named 'b'"):
        detach(unet, "b")


def test_detaching_one_of_two_keeps_the_other(unet):
    attach(unet, "lora", {"rank": 2}, name="a")
    attach(unet, "hra", {"rank": 2}, name="b")
    activate(unet, {"a": 0.5, "b": 1.0})
    detach(unet, "a")
    assert attachment.adapter_names(unet) == ["b"] and attachment.state_of(unet).active == (("b", 1.0),)


def test_groups_that_do_not_fit_the_batch_are_refused(unet):
    attach(unet, "lora", {"rank": 2}, name="a")
    x, text = torch.zeros(3, 4, 8, 8), torch.zeros(3, 6, 32)
    with (
        pytest.raises(ValueError, match="cover 2 samples"),
        activation.batch_adapters(unet, [({}, 1), ({"a": 1.0}, 1)]),
    ):
        unet(x, torch.full((3,), 1), text)


def test_an_attention_that_never_calls_its_layer_is_refused():
    with pytest.raises(UserError, match="never called as a layer"):
        attach(torch.nn.TransformerEncoderLayer(32, 4), "lora", {"rank": 2})


def test_a_merged_model_takes_no_adapters_and_no_groups(unet):
    attach(unet, "lora", {"rank": 2}, name="a")
    merging.merge(unet)
    for refused in (
        lambda: attach(unet, "hra", {"rank": 2}, name="b"),
        lambda: activation.batch_adapters(unet, []).__enter__(),
    ):
        with pytest.raises(UserError, match="unmerge"):
            refused()
    assert attachment.adapter_names(unet) == ["a"]


def test_adapters_stay_in_float32_on_a_bfloat16_base():
    unet = tiny_unet().to(torch.bfloat16)
    attach(unet, "hra", {"rank": 2})
    assert {p.dtype for p in attachment.adapter_parameters(unet, "default").values()} == {torch.float32}
    assert unet.dtype == torch.bfloat16


def test_a_copied_model_has_adapters_of_its_own(unet):
    attach(unet, "lora", {"rank": 2}, name="a")
    twin = copy.deepcopy(unet)
    activate(twin, {})
    assert attachment.state_of(unet).active == (("a", 1.0),)


def test_two_methods_cannot_share_a_name():
    with pytest.raises(ValueError, match="registered already"):
        registry.register("lora", config=registry.MethodConfig, title="", summary="", paper="")(object)


def test_the_regulariser_is_the_papers_and_small_at_the_start(unet):
    """λ · Σ‖I − ÛᵀÛ‖² over layers, about rank × λ each at the start; by default their mean."""
    terms = {}
    for over in ("mean", "sum"):
        attach(unet, "hra", {"rank": 4, "orthogonality": 1e-3, "orthogonality_over_layers": over}, name=over)
        terms[over] = float(attachment.penalty(unet, over).detach())
    vectors = [u / u.norm(dim=0) for u in attachment.adapter_parameters(unet, "sum").values()]
    wanted = 1e-3 * sum(float((torch.eye(4) - u.T @ u).square().sum()) for u in vectors)
    assert terms["sum"] == pytest.approx(wanted, rel=1e-5)
    assert terms["mean"] == pytest.approx(wanted / len(vectors), rel=1e-5)
    assert 0.004 <= terms["mean"] < 0.006, "rank × λ, and a little for what the pairs share"


@pytest.mark.parametrize("mixer", ["orthogonal", "kaiming"])
def test_moslora_mixes_from_the_start(unet, mixer):
    """The mixer is neither zero, which could never train, nor the identity, which is LoRA."""
    attach(unet, "moslora", {"rank": 4, "mixer": mixer})
    mixers = [p for name, p in attachment.adapter_parameters(unet, "default").items() if name.endswith("mixer")]
    for m in mixers:
        assert m.norm() > 0.5 and (m - torch.eye(4)).norm() > 0.5
        assert (mixer == "orthogonal") == torch.allclose(m @ m.T, torch.eye(4), atol=1e-5)


def test_moslora_is_orthogonal_by_default():
    assert registry.get_method("moslora").parse({}).mixer == "orthogonal"
