"""LoRA's scale and starts, against PEFT, and what a PiSSA adapter exports."""

import copy

import pytest
import torch
from conftest import relative, stir, tiny_pipe, tiny_unet
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from peft_oracle import TARGETS, compare_outputs_and_gradients, lora_counterparts, pair, run

from hra_diffusion.adapters import adapter_file, attachment, loading
from hra_diffusion.interop.exports import export


def test_rslora_equals_pefts():
    config = LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=TARGETS)
    ours, theirs = pair(config, "lora", {"rank": 4, "alpha": 3, "rank_stabilized": True})
    compare_outputs_and_gradients(ours, theirs, lora_counterparts(ours, theirs))


def test_pissa_equals_pefts():
    """Its start, and its output and gradients after a change, though PEFT changes the base's weights and we do not."""
    torch.manual_seed(0)
    ours = tiny_unet().eval()
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights="pissa", target_modules=TARGETS)
    theirs = inject_adapter_in_model(config, copy.deepcopy(ours), "default").eval()
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    attachment.attach(ours, "lora", {"rank": 4, "alpha": 8, "init": "pissa"}, name="a")
    after = ours.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    counterparts = {}
    for path, adapter in attachment.adapter_layers(ours, "a").items():
        layer = theirs.get_submodule(path)
        for mine, other in ((adapter.down, layer.lora_A), (adapter.up, layer.lora_B)):
            torch.testing.assert_close(mine, other["default"].weight, atol=1e-5, rtol=1e-4)
            counterparts[mine] = (other["default"].weight, False)
    stir(counterparts)
    compare_outputs_and_gradients(ours, theirs, counterparts)


@pytest.mark.parametrize("options", [{"init": "pissa"}, {"rank_stabilized": True, "alpha": 3}], ids=str)
@pytest.mark.parametrize("format", ["kohya", "diffusers", "peft"])
def test_exports_are_plain_loras_for_the_unchanged_base(tmp_path, options, format):
    pipe = tiny_pipe()
    attachment.attach(pipe.unet, "lora", {"rank": 4, **options}, name="a")
    stir(p for p in attachment.adapter_parameters(pipe.unet, "a").values() if p.requires_grad)
    expected = run(pipe.unet)
    found = export(pipe, "a", format, tmp_path / ("a.safetensors" if format == "kohya" else "a"))
    assert (found.form.lower(), found.rank, found.error) == ("lora", 8 if "init" in options else 4, 0)
    other = tiny_pipe()
    if format == "peft":
        other.unet = PeftModel.from_pretrained(other.unet, tmp_path / "a" / "unet")
    else:
        other.load_lora_weights(str(found.path))
    assert relative(run(other.unet), expected) < 1e-5


def test_a_loaded_pissa_adapter_needs_no_decomposition(tmp_path, monkeypatch):
    pipe, other = tiny_pipe(), tiny_pipe()
    attachment.attach(pipe.unet, "lora", {"rank": 4, "init": "pissa"}, name="a")
    stir(p for p in attachment.adapter_parameters(pipe.unet, "a").values() if p.requires_grad)
    info = adapter_file.attached_info({"unet": pipe.unet}, "a", base="tiny")
    adapter_file.save(tmp_path / "a.safetensors", {"unet": pipe.unet}, info)
    monkeypatch.delattr(torch.linalg, "svd")
    loading.load(tmp_path / "a.safetensors", {"unet": other.unet})
    assert torch.equal(run(other.unet), run(pipe.unet))
