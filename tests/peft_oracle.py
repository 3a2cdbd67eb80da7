"""PEFT's adapters beside ours, with the same parameters on the same model."""

import copy

import torch
from conftest import relative, stir, tiny_unet
from peft import inject_adapter_in_model

from hra_diffusion.adapters import attachment

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def run(unet):
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 6, 32, generator=g)
    return unet(x, torch.full((2,), 10), text).sample


def pair(config, method, options):
    """Two copies of a tiny UNet: with our adapter, and with PEFT's."""
    torch.manual_seed(0)
    ours = tiny_unet().eval()
    theirs = inject_adapter_in_model(config, copy.deepcopy(ours), "default").eval()
    attachment.attach(ours, method, options, name="a")
    stir(attachment.adapter_parameters(ours, "a").values())
    return ours, theirs


def lora_counterparts(ours, theirs):
    """Our parameters of a LoRA -> PEFT's."""
    counterparts = {}
    for path, adapter in attachment.adapter_layers(ours, "a").items():
        layer = theirs.get_submodule(path)
        counterparts[adapter.down] = (layer.lora_A["default"].weight, False)
        counterparts[adapter.up] = (layer.lora_B["default"].weight, False)
    return counterparts


def compare_outputs_and_gradients(ours, theirs, counterparts):
    """``counterparts``: our parameter -> (PEFT's parameter, whether it is transposed)."""
    with torch.no_grad():
        for mine, (other, transposed) in counterparts.items():
            other.copy_(mine.mT if transposed else mine)
    outputs = [run(model) for model in (ours, theirs)]
    assert relative(*outputs) < 1e-5
    for output in outputs:
        output.square().mean().backward()
    for mine, (other, transposed) in counterparts.items():
        assert mine.grad is not None and other.grad is not None
        torch.testing.assert_close(mine.grad, other.grad.mT if transposed else other.grad, atol=1e-5, rtol=1e-3)
