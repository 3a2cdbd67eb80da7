"""Layer names of other programs refer to the right layers, and unknown names are reported."""

import pytest
import torch
from conftest import PIPES, everything, relative, stir
from safetensors.torch import load_file, save_file

from hra_diffusion import interop, pipeline
from hra_diffusion.adapters import attachment, targets
from hra_diffusion.interop import checkpoint_keys, key_names
from hra_diffusion.interop.imports import AdapterImportError
from hra_diffusion.models import loading

TEXT_PREFIXES = {
    "Open Model Initiative": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
    "ComfyUI": {
        "text_encoder": "text_encoders.clip_l.transformer",
        "text_encoder_2": "text_encoders.clip_g.transformer",
    },
    "diffusers": {"text_encoder": "text_encoder", "text_encoder_2": "text_encoder_2"},
}
UNET_PREFIXES = {"Open Model Initiative": "unet", "ComfyUI": "diffusion_model", "diffusers": "unet"}


def trained(kind):
    """A tiny pipeline with a LoRA on all components, and its factors by layer."""
    pipe = PIPES[kind]()
    for model in pipeline.components(pipe).values():
        attachment.attach(model, "lora", {"rank": 2}, name="Rex")
        stir(attachment.adapter_parameters(model, "Rex").values())
    factors = {
        (name, path): (layer.up.detach(), layer.down.detach())
        for name, model in pipeline.components(pipe).items()
        for path, layer in attachment.adapter_layers(model, "Rex").items()
    }
    return pipe, factors


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("program", TEXT_PREFIXES)
def test_files_of_other_programs(kind, program, tmp_path):
    """The layout of OneTrainer's files (OMI's names and ComfyUI's), and diffusers' names with the same suffixes."""
    pipe, factors = trained(kind)
    tensors = {}
    for (component, path), (up, down) in factors.items():
        if component == "unet":
            own = path if program == "diffusers" else checkpoint_keys.unet_key(path, pipe.unet.config)
            key = f"{UNET_PREFIXES[program]}.{own}"
        else:
            key = f"{TEXT_PREFIXES[program][component]}.{key_names.public_path(component, path)}"
        tensors |= {f"{key}.lora_up.weight": up.contiguous(), f"{key}.lora_down.weight": down.contiguous()}
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "other.safetensors")
    fresh = PIPES[kind]()
    place, report = interop.import_adapter(fresh, tmp_path / "other.safetensors", tmp_path, "Other")
    assert report.used == report.keys == 3 * len(factors)
    pipeline.load(fresh, place)
    assert relative(everything(fresh), everything(pipe)) < 1e-5


def test_unknown_prefixes_are_reported(pipe, tmp_path):
    """They are not taken for the UNet's, although the rest of the name is that of a layer."""
    layer = targets.find_targets(pipe.unet)[0]
    strange = {
        f"transformer.{layer}.lora_A.weight": "this base has no transformer",
        f"model.{layer}.lora_A.weight": "the prefix 'model' is not known",
        f"lora_transformer_{layer.replace('.', '_')}.lora_up.weight": "the prefix 'lora_transformer' is not known",
        f"lora_te3_{layer.replace('.', '_')}.lora_up.weight": "the prefix 'lora_te3' is not known",
        "clip_g.text_model.encoder.layers.0.mlp.fc1.lora_up.weight": "this base has no text_encoder_2",
        "bundle_emb.sks.clip_l": "it is a textual inversion, not an adapter",
    }
    good = {f"{layer}.lora_A.weight": torch.ones(1, 32), f"unet.{layer}.lora_B.weight": torch.ones(32, 1)}
    save_file(good | {key: torch.zeros(3) for key in strange}, tmp_path / "odd.safetensors")
    _, places, report = interop.parse_adapter(pipe, tmp_path / "odd.safetensors")
    assert places == [("unet", layer)] and report.used == 2
    assert {key: reason for reason, keys in report.skipped.items() for key in keys} == strange


@pytest.mark.parametrize("part", ["scalar", "oft_diag", "lora_E", "new_a.weight", "hada_w3"])
def test_a_layer_of_an_unknown_form_is_skipped_and_the_others_are_imported(part, pipe, tmp_path):
    """All its keys are reported with this reason, including those of a complete LoRA."""
    first, second = targets.find_targets(pipe.unet)[:2]
    tensors = {}
    for path in (first, second):
        name = f"lora_unet_{path.replace('.', '_')}"
        tensors |= {f"{name}.lora_up.weight": torch.ones(32, 1), f"{name}.lora_down.weight": torch.ones(1, 32),
                    f"{name}.alpha": torch.tensor(1.0)}  # fmt: skip
    name = f"lora_unet_{second.replace('.', '_')}"
    save_file(tensors | {f"{name}.{part}": torch.ones(4)}, tmp_path / "odd.safetensors")
    _, places, report = interop.parse_adapter(pipe, tmp_path / "odd.safetensors")
    reason = f"its layer has a tensor of an unknown kind, {part.removesuffix('.weight')}"
    assert places == [("unet", first)]
    assert set(report.skipped) == {reason} and all(key.startswith(name) for key in report.skipped[reason])
    assert len(report.skipped[reason]) == 4


def test_a_peft_file_is_assigned_to_the_component_with_its_layers(tmp_path):
    """The file does not name the component; the second text encoder has more of its layers than the first."""
    pipe = PIPES["sdxl"]()
    pipe.text_encoder.encoder.layers = pipe.text_encoder.encoder.layers[:1]
    attachment.attach(pipe.text_encoder_2, "lora", {"rank": 2}, name="Rex")
    interop.export(pipe, "Rex", "peft", tmp_path / "Rex")
    folder = tmp_path / "Rex" / "text_encoder_2" if (tmp_path / "Rex" / "text_encoder_2").is_dir() else tmp_path / "Rex"
    folder.rename(tmp_path / "mine")
    _, places, _ = interop.parse_adapter(pipe, tmp_path / "mine")
    assert {component for component, _ in places} == {"text_encoder_2"}


FORMS = {
    "kohya": "lora_unet_{flat}.lora_up.weight",
    "diffusers": "unet.{path}.lora_A.weight",
    "older diffusers": "{path}_lora.up.weight",
    "lora.down": "unet.{path}.lora.down.weight",
    "lora_linear_layer": "unet.{path}.lora_linear_layer.down.weight",
    "cloneofsimo": "unet:0:up",
    "PEFT": "base_model.model.{path}.hra_u",
    "LoHa": "lycoris_{flat}.hada_w1_a",
    "LoKr": "lycoris_{flat}.lokr_w1",
    "Full": "lycoris_{flat}.diff",
    "OFT": "oft_unet_{flat}.oft_blocks",
    "GLoRA": "lycoris_{flat}.a1.weight",
    "IA3": "lycoris_{flat}.on_input",
}


@pytest.mark.parametrize("form", FORMS)
def test_loading_another_programs_file_suggests_import(form, pipe, tmp_path):
    """Both as an adapter and as a base model, in all formats."""
    path = targets.find_targets(pipe.unet)[0]
    file = tmp_path / "other file.safetensors"
    save_file({FORMS[form].format(path=path, flat=path.replace(".", "_")): torch.ones(2, 2)}, file)
    with pytest.raises(
        ValueError, match=r"another program's adapter; import it with hra-diffusion import '.*other file"
    ):
        pipeline.load(pipe, file)
    with pytest.raises(ValueError, match="is an adapter, not a base model: import it with hra-diffusion import"):
        loading.load_base(str(file))


def test_loading_folders_and_pickles_of_other_programs_suggests_import(pipe, tmp_path):
    folder = tmp_path / "peft"
    folder.mkdir()
    save_file({"base_model.model.conv_in.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="is an adapter, not a base model: import it with hra-diffusion import"):
        loading.load_base(str(folder))
    folder.rename(tmp_path / "unet")  # as one folder of several, one per component
    with pytest.raises(ValueError, match="is an adapter, not a base model: import it with hra-diffusion import"):
        loading.load_base(str(tmp_path))
    for suffix in (".pt", ".bin", ".ckpt"):
        (tmp_path / f"old{suffix}").write_bytes(b"PK\x03\x04 a pickle of some length")
        with pytest.raises(ValueError, match=r"is a pickle.*hra-diffusion import"):
            pipeline.load(pipe, tmp_path / f"old{suffix}")
        with pytest.raises(ValueError, match="hra-diffusion import"):
            loading.load_base(str(tmp_path / f"old{suffix}"))


def test_an_adapter_is_refused_as_a_base_model(pipe, tmp_path):
    attachment.attach(pipe.unet, "hra", {"rank": 2}, name="Rex")
    pipeline.save(pipe, tmp_path / "rex.safetensors", "Rex")
    with pytest.raises(ValueError, match="is an adapter, not a base model: give it as --adapter"):
        loading.load_base(str(tmp_path / "rex.safetensors"))
    assert load_file(tmp_path / "rex.safetensors")
    with pytest.raises(AdapterImportError, match="is an adapter of hra-diffusion already"):
        interop.parse_adapter(pipe, tmp_path / "rex.safetensors")
