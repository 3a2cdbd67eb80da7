"""The registry, and what single methods promise beyond the contract."""

import contextlib

import pytest
import torch
from conftest import tiny_unet

from hra_diffusion.adapters import attachment, registry
from hra_diffusion.adapters.attachment import attach
from hra_diffusion.errors import UserError


@pytest.fixture
def unet():
    return tiny_unet()


def test_two_methods_can_t_share_a_name():
    with pytest.raises(ValueError, match="registered already"):
        registry.register("lora", config=registry.MethodConfig, title="", summary="", paper="")(object)


def test_the_penalty_is_the_papers_regulariser_and_small_at_the_start(unet):
    """λ · Σ‖I − ÛᵀÛ‖² over layers, or by default their mean; about rank × λ per layer at the start."""
    terms = {}
    for over in ("mean", "sum"):
        attach(unet, "hra", {"rank": 4, "orthogonality": 1e-3, "orthogonality_over_layers": over}, name=over)
        terms[over] = float(attachment.penalty(unet, over).detach())
    vectors = [u / u.norm(dim=0) for u in attachment.adapter_parameters(unet, "sum").values()]
    expected = 1e-3 * sum(float((torch.eye(4) - u.T @ u).square().sum()) for u in vectors)
    assert terms["sum"] == pytest.approx(expected, rel=1e-5)
    assert terms["mean"] == pytest.approx(expected / len(vectors), rel=1e-5)
    assert 0.004 <= terms["mean"] < 0.006, "rank × λ, plus a little for the overlap between pairs"


@pytest.mark.parametrize("mixer", ["orthogonal", "kaiming"])
def test_the_initial_mixer_is_neither_zero_nor_the_identity(unet, mixer):
    """With a zero mixer nothing trains, and with the identity MoSLoRA starts as LoRA."""
    attach(unet, "moslora", {"rank": 4, "mixer": mixer})
    mixers = [p for name, p in attachment.adapter_parameters(unet, "default").items() if name.endswith("mixer")]
    for m in mixers:
        assert m.norm() > 0.5 and (m - torch.eye(4)).norm() > 0.5
        assert (mixer == "orthogonal") == torch.allclose(m @ m.T, torch.eye(4), atol=1e-5)


def test_the_mixer_is_orthogonal_by_default():
    assert registry.get_method("moslora").parse({}).mixer == "orthogonal"


@pytest.mark.parametrize("option", sorted(registry.TRAINING_OPTIONS))
def test_help_lists_the_methods_that_take_an_option(option):
    _, methods = registry.options()[option]
    for name in registry.method_names():
        with contextlib.nullcontext() if name in methods else pytest.raises(UserError, match="act on low-rank factors"):
            registry.get_method(name).parse({option: 0.5})
    assert methods and len(methods) < len(registry.method_names())
