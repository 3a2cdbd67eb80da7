"""Layers that are found as targets, and layers that can't be adapted."""

import pytest
import torch
from conftest import tiny_text_encoder, tiny_unet

from hra_diffusion.adapters.attachment import attach
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
