"""Frozen weights in fewer bits: how far off they are, that gradients are those of the weights they read as."""

import pytest
import torch
from conftest import PIPES, everything, relative, tiny_pipe

from hra_diffusion import pipeline
from hra_diffusion.adapters import attachment, loading, quantization
from hra_diffusion.errors import UserError

WEIGHT_ERROR = {"int8": 0.012, "nf4": 0.11}
"""RMS error of normal weights: a step of 2·3.5σ/254 over √12 is 0.8 %; NF4's is 9 % in its paper's blocks of 64."""
OUTPUT_ERROR = {"int8": 0.03, "nf4": 0.25}
"""Of a UNet's prediction, twice what toybox's (1.5 %, 10 %) has, since rounding adds up otherwise in a tiny one."""


@pytest.mark.parametrize("kind", WEIGHT_ERROR)
@pytest.mark.parametrize("shape", [(48, 64), (24, 9 * 10)])
def test_a_weight_there_and_back(kind, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    codes, scales = quantization.pack(weight, kind)
    assert codes.nbytes <= {"int8": 1.0, "nf4": 0.52}[kind] * weight.numel()
    back = quantization.unpack(codes, scales, kind, weight.shape, torch.float32)
    assert relative(back, weight) < WEIGHT_ERROR[kind]
    again = quantization.unpack(*quantization.pack(back, kind), kind, weight.shape, torch.float32)
    assert relative(again, back) < 1e-6, "what is stored reads as itself"


def test_nf4_is_that_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    assert (functional.get_4bit_type("nf4", device="cpu") - quantization.quantiles()).abs().max() < 1e-6


@pytest.mark.parametrize("kind", OUTPUT_ERROR)
@pytest.mark.parametrize("family", PIPES)
def test_a_base_says_about_the_same_in_fewer_bits(kind, family):
    pipe = PIPES[family]()
    before, size = everything(pipe), sum(p.nbytes for p in pipe.unet.parameters())
    quantization.quantise(pipe.unet, kind)
    held = sum(t.nbytes for t in (*pipe.unet.parameters(), *pipe.unet.buffers()))
    assert held < 0.6 * size, "tiny: what stays as it is weighs more than in a real UNet"
    assert 1e-5 < relative(everything(pipe), before) < OUTPUT_ERROR[kind]


@pytest.mark.parametrize("kind", OUTPUT_ERROR)
def test_gradients_are_those_of_the_weights_it_reads_as(kind):
    """On linear and conv layers: the same network with the unpacked weights, in full."""
    packed, plain = tiny_pipe().unet, tiny_pipe().unet
    quantization.quantise(packed, kind)
    for path, layer in packed.named_modules():
        if isinstance(layer, quantization.Quantised):
            plain.get_submodule(path).weight.data = layer.weight
    gradients = []
    for unet in (packed, plain):
        attachment.attach(unet, "hra", {"rank": 4}, name="x", targets="attention+conv")
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        text = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))
        unet(noise, torch.tensor([3, 500]), text).sample.square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in attachment.adapter_parameters(unet, "x").values()]))
    assert gradients[0].abs().max() > 0 and relative(*gradients) < 1e-5


def test_an_adapter_of_it_knows_the_full_base_and_is_not_merged_into_it(tmp_path, recwarn):
    pipe, full = tiny_pipe(), tiny_pipe()
    quantization.quantise(pipe.unet, "nf4")
    attachment.attach(pipe.unet, "lora", {"rank": 4}, name="x")
    pipeline.save(pipe, tmp_path / "x.safetensors", "x")
    with pytest.raises(UserError, match="weights are quantised; load the base in full precision"):
        pipeline.merge(pipe)
    loading.load(tmp_path / "x.safetensors", pipeline.components(full))
    assert not [w for w in recwarn if "other weights" in str(w.message)]
