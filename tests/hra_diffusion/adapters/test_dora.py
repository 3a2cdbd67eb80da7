"""DoRA against PEFT's."""

import torch
from conftest import relative, stir
from peft import LoraConfig
from peft_oracle import TARGETS, compare_outputs_and_gradients, pair
from torch import nn

from hra_diffusion.adapters import attachment, merging
from hra_diffusion.adapters.activation import activate, frozen


def test_dora_equals_pefts():
    config = LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=TARGETS)
    ours, theirs = pair(config, "dora", {"rank": 4, "alpha": 8})
    counterparts = {}
    for path, adapter in attachment.adapter_layers(ours, "a").items():
        layer = theirs.get_submodule(path)
        counterparts[adapter.down] = (layer.lora_A["default"].weight, False)
        counterparts[adapter.up] = (layer.lora_B["default"].weight, False)
        counterparts[adapter.magnitude] = (layer.lora_magnitude_vector["default"].weight, False)
    compare_outputs_and_gradients(ours, theirs, counterparts)


def test_magnitudes_are_the_norms_of_the_merged_weight():
    model = nn.ModuleDict({"to_q": nn.Linear(16, 24)})
    attachment.attach(model, "dora", {"rank": 4}, name="a")
    stir(attachment.adapter_parameters(model, "a").values(), by=1.0)
    merging.merge(model)
    magnitude = attachment.adapter_layers(model, "a")["to_q"].magnitude
    torch.testing.assert_close(model["to_q"].weight.norm(dim=1), magnitude.abs())


def test_an_adapter_before_it_does_not_change_its_scale():
    """Its norms are those of the base's weight, live and merged."""
    model, x = nn.ModuleDict({"to_q": nn.Linear(16, 24)}).eval(), torch.randn(5, 16)
    for name, method in (("first", "lora"), ("second", "dora")):
        attachment.attach(model, method, {"rank": 4}, name=name)
        stir(attachment.adapter_parameters(model, name).values(), by=1.0)
    activate(model, {"first": 0.5, "second": 1.0})
    with torch.no_grad():
        live = model["to_q"](x)
        with frozen(model):
            assert relative(model["to_q"](x), live) < 1e-5
        merging.merge(model)
        assert relative(model["to_q"](x), live) < 1e-5
