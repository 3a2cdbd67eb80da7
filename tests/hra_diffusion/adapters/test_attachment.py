"""Attaching and detaching adapters, and the errors for requests that are refused."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_module
from conftest import relative, stir, tiny_unet

from hra_diffusion.adapters import activation, attachment, merging
from hra_diffusion.adapters.activation import activate
from hra_diffusion.adapters.attachment import attach, detach
from hra_diffusion.errors import UserError


@pytest.fixture
def unet():
    return tiny_unet()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "loha"}, "known methods: hoft, hra, lora, moslora, shoft, boft, dora, oft"),
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
def test_invalid_requests_are_refused_and_the_model_does_not_change(unet, arguments, message):
    before = copy.deepcopy(unet.state_dict())
    with pytest.raises(UserError, match=message):
        attach(unet, **arguments)
    assert attachment.adapter_names(unet) == [] and list(unet.state_dict()) == list(before)


@pytest.mark.parametrize("offload_first", [False, True])
def test_an_offloaded_model_takes_adapters(unet, offload_first):
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 7, 32)
    plain = copy.deepcopy(unet)
    with torch.no_grad():
        if offload_first:
            cpu_offload(unet, torch.device("cpu"))
        for model in (plain, unet):
            attach(model, "hoft", {"rank": 4}, targets="attention+conv")
            stir(attachment.adapter_parameters(model, "default").values())
        if not offload_first:
            cpu_offload(unet, torch.device("cpu"))
        expected = plain(*inputs).sample
        assert relative(unet(*inputs).sample, expected) < 1e-5
        with activation.frozen(unet):
            assert relative(unet(*inputs).sample, expected) < 1e-5
        with pytest.raises(UserError, match="is offloaded; merge before"):
            merging.merge(unet)
        remove_hook_from_module(unet, recurse=True)
        assert relative(unet(*inputs).sample, expected) < 1e-5
        detach(unet), detach(plain)
        assert torch.equal(unet(*inputs).sample, plain(*inputs).sample)


def test_names_must_be_unique_and_known(unet):
    attach(unet, "lora", {"rank": 2}, name="keys")  # also an attribute of ModuleDict
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


def test_groups_that_don_t_divide_the_batch_are_refused(unet):
    attach(unet, "lora", {"rank": 2}, name="a")
    x, text = torch.zeros(3, 4, 8, 8), torch.zeros(3, 6, 32)
    with (
        pytest.raises(ValueError, match="cover 2 samples"),
        activation.batch_adapters(unet, [({}, 1), ({"a": 1.0}, 1)]),
    ):
        unet(x, torch.full((3,), 1), text)


def test_a_merged_model_refuses_adapters_and_groups(unet):
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


def test_a_copied_model_has_its_own_adapter_state(unet):
    attach(unet, "lora", {"rank": 2}, name="a")
    clone = copy.deepcopy(unet)
    activate(clone, {})
    assert attachment.state_of(unet).active == (("a", 1.0),)
