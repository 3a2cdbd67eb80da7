"""Quantised weights: their error, and gradients equal to those of the unpacked weights."""

import pytest
import torch
from conftest import PIPES, everything, relative, tiny_pipe

from hra_diffusion import pipeline
from hra_diffusion.adapters import attachment, loading, quantization
from hra_diffusion.errors import UserError

WEIGHT_ERROR = {"int8": 0.012, "nf4": 0.11}
"""RMS error for normal weights: a step of 2·3.5σ/254 over √12 gives 0.8 %, NF4 gives 9 % with blocks of 64."""
OUTPUT_ERROR = {"int8": 0.03, "nf4": 0.25}
"""Error of a UNet's prediction: twice that of toybox (1.5 %, 10 %); errors accumulate differently in a tiny UNet."""


@pytest.mark.parametrize("kind", WEIGHT_ERROR)
@pytest.mark.parametrize("shape", [(48, 64), (24, 9 * 10)])
def test_pack_and_unpack(kind, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    codes, scales = quantization.pack(weight, kind)
    assert codes.nbytes <= {"int8": 1.0, "nf4": 0.52}[kind] * weight.numel()
    back = quantization.unpack(codes, scales, kind, weight.shape, torch.float32)
    assert relative(back, weight) < WEIGHT_ERROR[kind]
    again = quantization.unpack(*quantization.pack(back, kind), kind, weight.shape, torch.float32)
    assert relative(again, back) < 1e-6, "packing unpacked values is exact"


def test_nf4_quantiles_equal_those_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    assert (functional.get_4bit_type("nf4", device="cpu") - quantization.quantiles()).abs().max() < 1e-6


@pytest.mark.parametrize("kind", OUTPUT_ERROR)
@pytest.mark.parametrize("family", PIPES)
def test_a_quantised_base_has_similar_outputs(kind, family):
    pipe = PIPES[family]()
    before, size = everything(pipe), sum(p.nbytes for p in pipe.unet.parameters())
    quantization.quantise(pipe.unet, kind)
    stored = sum(t.nbytes for t in (*pipe.unet.parameters(), *pipe.unet.buffers()))
    assert stored < 0.6 * size, "layers that are not quantised have a larger share than in a real UNet"
    assert 1e-5 < relative(everything(pipe), before) < OUTPUT_ERROR[kind]


@pytest.mark.parametrize("kind", OUTPUT_ERROR)
def test_gradients_equal_those_of_the_unpacked_weights(kind):
    """For linear and convolution layers, against a network with the unpacked weights."""
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


def test_an_adapter_of_a_quantised_base_fits_the_full_base_and_can_t_be_merged(tmp_path, recwarn):
    pipe, full = tiny_pipe(), tiny_pipe()
    quantization.quantise(pipe.unet, "nf4")
    attachment.attach(pipe.unet, "lora", {"rank": 4}, name="x")
    pipeline.save(pipe, tmp_path / "x.safetensors", "x")
    with pytest.raises(UserError, match="weights are quantised; load the base in full precision"):
        pipeline.merge(pipe)
    loading.load(tmp_path / "x.safetensors", pipeline.components(full))
    assert not [w for w in recwarn if "other weights" in str(w.message)]
