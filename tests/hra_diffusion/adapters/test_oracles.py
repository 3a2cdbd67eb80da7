"""Comparison with PEFT's LoRA and HRA, with the same parameters on the same model."""

import copy

import pytest
import torch
from conftest import relative, stir, tiny_llama
from peft import HRAConfig, LoraConfig, inject_adapter_in_model
from peft_oracle import TARGETS, compare_outputs_and_gradients, lora_counterparts, pair

from hra_diffusion.adapters import attachment


def test_lora_equals_pefts_lora():
    ours, theirs = pair(LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS), "lora", {"rank": 4, "alpha": 8})
    compare_outputs_and_gradients(ours, theirs, lora_counterparts(ours, theirs))


def test_hra_equals_pefts_hra():
    ours, theirs = pair(HRAConfig(r=4, target_modules=TARGETS), "hra", {"rank": 4})
    counterparts = {
        adapter.right.u: (theirs.get_submodule(path).hra_u["default"], False)
        for path, adapter in attachment.adapter_layers(ours, "a").items()
    }
    compare_outputs_and_gradients(ours, theirs, counterparts)


def test_gram_schmidt_hra_equals_pefts_from_an_unpaired_start():
    ours, theirs = pair(
        HRAConfig(r=4, apply_GS=True, target_modules=TARGETS), "hra", {"rank": 4, "orthogonality": float("inf")}
    )
    counterparts = {
        adapter.right.u: (theirs.get_submodule(path).hra_u["default"], False)
        for path, adapter in attachment.adapter_layers(ours, "a").items()
    }
    compare_outputs_and_gradients(ours, theirs, counterparts)


@pytest.mark.parametrize("method", ["lora", "hra"])
def test_language_models(method):
    torch.manual_seed(0)
    ours = tiny_llama().eval()
    names = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = (
        HRAConfig(r=4, target_modules=names) if method == "hra" else LoraConfig(r=4, lora_alpha=4, target_modules=names)
    )
    theirs = inject_adapter_in_model(config, copy.deepcopy(ours), "default").eval()
    attachment.attach(ours, method, {"rank": 4}, name="a")
    stir(attachment.adapter_parameters(ours, "a").values())
    with torch.no_grad():
        for path, adapter in attachment.adapter_layers(ours, "a").items():
            layer = theirs.get_submodule(path)
            if method == "hra":
                layer.hra_u["default"].copy_(adapter.right.u)
            else:
                layer.lora_A["default"].weight.copy_(adapter.down)
                layer.lora_B["default"].weight.copy_(adapter.up)
        ids = torch.arange(10)[None]
        assert relative(ours(ids).logits, theirs(ids).logits) < 1e-5
