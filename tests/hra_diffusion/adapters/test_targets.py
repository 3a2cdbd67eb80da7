"""Layers that are found as targets, and layers that can't be adapted."""

import pytest
import torch
from conftest import tiny_flux2_transformer, tiny_sd3_transformer, tiny_text_encoder, tiny_unet

from hra_diffusion.adapters.attachment import attach
from hra_diffusion.adapters.targets import find_targets
from hra_diffusion.errors import UserError

KINDS = ("ff", "ff_context")


@pytest.fixture
def unet():
    return tiny_unet()


def test_attention_projections_are_the_default_target(unet):
    paths = find_targets(unet)
    assert len(paths) == 32, "4 transformer blocks × (self + cross) attention × (q, k, v, out)"
    assert all(path.rpartition("attn")[2].split(".", 1)[1] in ("to_q", "to_k", "to_v", "to_out.0") for path in paths)
    assert len(find_targets(tiny_text_encoder())) == 8


@pytest.mark.parametrize("targets", ["attention", "attention+feed-forward"])
def test_the_named_targets_of_diffusion_transformers(targets):
    """Of Stable Diffusion 3.5, whose last block has no output for the text, and of FLUX.2."""
    own, text = ["to_q", "to_k", "to_v", "to_out.0"], ["add_q_proj", "add_k_proj", "add_v_proj"]
    with_text, dual = [f"attn.{name}" for name in (*own, *text)], [f"attn2.{name}" for name in own]
    blocks = [[*with_text, "attn.to_add_out", *dual], with_text]
    double, single = [*with_text, "attn.to_add_out"], ["attn.to_qkv_mlp_proj", "attn.to_out"]
    if targets == "attention+feed-forward":
        blocks[0] = [*blocks[0], *(f"{kind}.{name}" for kind in KINDS for name in ("net.0.proj", "net.2"))]
        blocks[1] = [*blocks[1], "ff.net.0.proj", "ff.net.2"]
        double += [f"{kind}.{name}" for kind in KINDS for name in ("linear_in", "linear_out")]
    expected = [f"transformer_blocks.{number}.{name}" for number, names in enumerate(blocks) for name in names]
    assert sorted(find_targets(tiny_sd3_transformer(), targets)) == sorted(expected)
    expected = [f"transformer_blocks.0.{name}" for name in double]
    expected += [f"single_transformer_blocks.0.{name}" for name in single]
    assert sorted(find_targets(tiny_flux2_transformer(), targets)) == sorted(expected)


def test_a_pattern_selects_layers(unet):
    assert attach(unet, "hra", {"rank": 2}, targets=r"mid_block.*attn2\.to_[kv]") == [
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
    ]


def test_grouped_convolutions_are_refused():
    with pytest.raises(UserError, match="grouped convolution"):
        attach(torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=2)), "lora", {"rank": 1}, targets="0")


def test_an_attention_that_never_calls_its_layer_is_refused():
    with pytest.raises(UserError, match="never called as a layer"):
        attach(torch.nn.TransformerEncoderLayer(32, 4), "lora", {"rank": 2})
