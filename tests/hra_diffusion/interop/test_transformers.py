"""Files for Stable Diffusion 3.5 and FLUX.2: diffusers' own readers are the oracle of names and fused layers."""

import json

import pytest
import torch
from conftest import PIPES, relative
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from loaders import BOTH, EXACT, TRANSFORMERS, adapted, make, outputs, with_diffusers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hra_diffusion import interop, pipeline
from hra_diffusion.adapters import attachment, targets
from hra_diffusion.errors import UserError
from hra_diffusion.interop import textual_inversion
from hra_diffusion.interop.imports import AdapterImportError
from hra_diffusion.interop.transformer_keys import original_layers, swap_halves
from hra_diffusion.models import families

CONVERTERS = {
    "sd3": convert_sd3_transformer_checkpoint_to_diffusers,
    "flux2": convert_flux2_transformer_checkpoint_to_diffusers,
}
NORMS = {
    "sd3": {"attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k", "attn2.norm": "x_block.attn2.ln",
            "attn.norm_added": "context_block.attn.ln", "pos_embed.pos_embed": "pos_embed",
            "transformer_blocks": "joint_blocks"},
    "flux2": {"single_transformer_blocks": "single_blocks", "transformer_blocks": "double_blocks",
              "double_blocks.0.attn.norm_added_q.weight": "double_blocks.0.txt_attn.norm.query_norm.scale",
              "double_blocks.0.attn.norm_added_k.weight": "double_blocks.0.txt_attn.norm.key_norm.scale",
              "double_blocks.0.attn.norm_q.weight": "double_blocks.0.img_attn.norm.query_norm.scale",
              "double_blocks.0.attn.norm_k.weight": "double_blocks.0.img_attn.norm.key_norm.scale",
              "attn.norm_q.weight": "norm.query_norm.scale", "attn.norm_k.weight": "norm.key_norm.scale"},
}  # fmt: skip
"""Replacements in the names of the parameters that no adapter changes."""
ALL = r"(.*\.)?(to_\w+|add_\w_proj|linear\w*|0|2|proj|proj_out|context_embedder|x_embedder)"


def original_weights(kind, model):
    """The weights of a transformer in the layout of the original checkpoint."""
    state, weights = model.state_dict(), {}
    for layer in original_layers(model):
        for part in ("weight", "bias"):
            if f"{layer.paths[0]}.{part}" in state:
                whole = torch.cat([state.pop(f"{path}.{part}") for path in layer.paths])
                weights[f"{layer.name}.{part}"] = swap_halves(whole) if layer.swapped else whole
    for key, tensor in state.items():
        name = key
        for own, original in NORMS[kind].items():
            name = name.replace(own, original)
        weights[name] = tensor
    return weights


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_original_names_are_those_that_diffusers_reads(kind):
    model = make(kind).transformer
    read = CONVERTERS[kind](original_weights(kind, model))
    assert read.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, read[key]) for key, tensor in model.state_dict().items())
    layers = [path for layer in original_layers(model) for path in layer.paths]
    assert sorted(layers) == sorted(targets.find_targets(model, ALL))


@pytest.mark.parametrize("where", ["attention", r".*(to_v|add_k_proj)", ALL])
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_kohya_file_changes_the_original_weights_as_the_adapter_does(kind, where, tmp_path):
    """ComfyUI (17358c8f, comfy/lora.py), sd-scripts and musubi-tuner add alpha / rank · up · down to the layer with the
    name after "lora_unet_" in the original checkpoint."""
    pipe, ours = adapted(kind, "hra", where)
    done = interop.export(pipe, "Rex", "kohya", tmp_path / "rex.safetensors")
    file, fresh = load_file(done.path), make(kind)
    weights = original_weights(kind, fresh.transformer)
    names = {f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}": key for key in weights}
    changed = [key.removesuffix(".alpha") for key in file if key.endswith(".alpha") and key.startswith("lora_unet_")]
    for name in changed:
        up, down = (file[f"{name}.lora_{side}.weight"].flatten(1) for side in ("up", "down"))
        weight = weights[names[name]]
        weights[names[name]] = weight + (up @ down).reshape(weight.shape) * file[f"{name}.alpha"] / len(down)
    fresh.transformer.load_state_dict(CONVERTERS[kind](weights))
    for encoder in ("text_encoder", "text_encoder_2") if kind == "sd3" else ():
        fresh.register_modules(**{encoder: getattr(pipe, encoder)})
    assert changed and relative(outputs(fresh), ours) < EXACT


@pytest.mark.parametrize("format", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_exports_can_be_imported(kind, method, format, tmp_path):
    """A fused layer of a kohya file becomes layers of the adapter's own rank again."""
    pipe, ours = adapted(kind, method)
    done = interop.export(pipe, "Rex", format, tmp_path / ("rex" if format == "peft" else "rex.safetensors"))
    back, report = imported(kind, done.path, tmp_path)
    assert report.used == report.keys and relative(outputs(back), ours) < EXACT
    assert report.layers == {
        name: len(targets.find_targets(getattr(pipe, name))) for name, _ in families.of(pipe).kohya_prefixes
    }
    assert method != "lora" or report.ranks == {4: sum(report.layers.values())}


def test_layers_without_an_adapter_keep_their_weights_in_a_fused_dora(tmp_path):
    pipe, ours = adapted("flux2", "shoft", r".*(to_v|add_k_proj)")
    done = interop.export(pipe, "Rex", "kohya", tmp_path / "rex.safetensors")
    assert relative(outputs(imported("flux2", done.path, tmp_path)[0]), ours) < EXACT


def imported(kind, path, folder):
    """A new pipeline with a file's adapter, and the report."""
    pipe = make(kind)
    file, report = interop.import_adapter(pipe, path, folder, "Other")
    pipeline.load(pipe, file)
    return pipe, report


def random_file(shapes, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) * 0.3 for key, shape in shapes.items()}


def bfl_layers(model):
    """Outputs and inputs of the layers of FLUX.2's blocks, by their original names."""
    weights = original_weights("flux2", model)
    return {key.removesuffix(".weight"): tuple(tensor.shape) for key, tensor in weights.items()
            if "blocks" in key and tensor.ndim == 2}  # fmt: skip


def lora_file(layers, key, down="lora_A.weight", up="lora_B.weight", rank=3):
    shapes = {}
    for name, (d_out, d_in) in layers.items():
        shapes |= {f"{key(name)}.{down}": (rank, d_in), f"{key(name)}.{up}": (d_out, rank)}
    return random_file(shapes)


def lokr_file(layers, key):
    shapes = {}
    for name, (d_out, d_in) in layers.items():
        shapes[f"{key(name)}.lokr_w1"] = (4, 4)
        if name.endswith(("proj", "to_k")):
            shapes |= {f"{key(name)}.lokr_w2_a": (d_out // 4, 2), f"{key(name)}.lokr_w2_b": (2, d_in // 4)}
        else:
            shapes[f"{key(name)}.lokr_w2"] = (d_out // 4, d_in // 4)
    file = random_file(shapes)
    return file | {f"{key(name)}.alpha": torch.tensor(1.0) for name in layers}


def flat(name):
    return name.replace(".", "_")


def own_layers(model):
    return {path: tuple(model.get_submodule(path).weight.shape) for path in targets.find_targets(model)}


FILES = {
    "diffusers": lambda m: lora_file(own_layers(m), "transformer.{}".format),
    "ai-toolkit": lambda m: lora_file(bfl_layers(m), "diffusion_model.{}".format),
    "ai-toolkit LoKr": lambda m: lokr_file(bfl_layers(m), "diffusion_model.{}".format),
    "PEFT with BFL's names": lambda m: lora_file(bfl_layers(m), "base_model.model.{}".format),
    "ComfyUI with diffusers' names": lambda m: lora_file(own_layers(m), "diffusion_model.{}".format),
    "kohya": lambda m: (
        lora_file(bfl_layers(m), lambda n: f"lora_unet_{flat(n)}", "lora_down.weight", "lora_up.weight")
        | {f"lora_unet_{flat(name)}.alpha": torch.tensor(1.5) for name in bfl_layers(m)}
    ),
    "LyCORIS LoKr": lambda m: lokr_file(own_layers(m), lambda n: f"lycoris_{flat(n)}"),
}


@pytest.mark.parametrize("program", FILES)
def test_flux2_files_are_read_as_diffusers_reads_them(program, tmp_path):
    save_file(FILES[program](make("flux2").transformer), tmp_path / "other.safetensors")
    theirs = outputs(with_diffusers("flux2", tmp_path / "other.safetensors"))
    back, report = imported("flux2", tmp_path / "other.safetensors", tmp_path)
    assert report.used == report.keys and relative(outputs(back), theirs) < EXACT
    assert relative(outputs(make("flux2")), theirs) > 100 * EXACT


@pytest.mark.parametrize(
    "prefix", ["transformer.", "base_model.model.", "lora_transformer_", "lycoris_", "diffusion_model.", ""]
)
def test_sd3_files_with_diffusers_names_are_read_as_diffusers_reads_them(prefix, tmp_path):
    """OneTrainer's and SimpleTuner's prefixes, as ComfyUI 17358c8f reads them (comfy/lora.py), and PEFT's."""
    layers = own_layers(make("sd3").transformer)
    save_file(lora_file(layers, "transformer.{}".format), tmp_path / "diffusers.safetensors")
    names = {name: prefix + (flat(name) if prefix.endswith("_") else name) for name in layers}
    save_file(lora_file(layers, names.get), tmp_path / "other.safetensors")
    theirs = outputs(with_diffusers("sd3", tmp_path / "diffusers.safetensors"))
    back, report = imported("sd3", tmp_path / "other.safetensors", tmp_path)
    assert report.used == report.keys and relative(outputs(back), theirs) < EXACT


FLUX1 = {
    "kohya": ["lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_double_blocks_18_img_attn_qkv"],
    "diffusers": ["transformer.transformer_blocks.0.attn.to_q", "transformer.single_transformer_blocks.0.proj_mlp"],
}


@pytest.mark.parametrize("program", FLUX1)
def test_a_file_for_flux1_is_refused_with_the_reason(program, tmp_path):
    """Its first layers have the names and sizes of klein's."""
    first, other = FLUX1[program]
    width = 96 if program == "kohya" else 32
    save_file({f"{name}.lora_{side}.weight": torch.ones(shape) for name in (first, other)
               for side, shape in (("up", (width, 1)), ("down", (1, 32)))}, tmp_path / "flux1.safetensors")  # fmt: skip
    with pytest.raises(
        AdapterImportError, match=rf"is not for tiny-flux2: this base has no such layer.*such as {other}"
    ):
        interop.parse_adapter(make("flux2"), tmp_path / "flux1.safetensors")


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_file_for_sdxl_is_refused(kind, tmp_path):
    """Also if the base has its text encoders, as Stable Diffusion 3 has."""
    interop.export(adapted("sdxl", "lora")[0], "Rex", "kohya", tmp_path / "xl.safetensors")
    with pytest.raises(AdapterImportError, match=r"is not for tiny-.*this base has no such layer in its transformer"):
        interop.parse_adapter(make(kind), tmp_path / "xl.safetensors")


def test_files_for_transformers_are_refused_by_other_bases(tmp_path):
    for kind in TRANSFORMERS:
        pipe = make(kind)
        attachment.attach(pipe.transformer, "lora", name="Rex")
        for format in ("kohya", "diffusers"):
            done = interop.export(pipe, "Rex", format, tmp_path / f"{kind}-{format}.safetensors")
            for other in ({"sd", "sdxl"} & PIPES.keys()) | ({"sd3", "flux2"} - {kind}):
                with pytest.raises(AdapterImportError, match=r"no such layer|has no transformer|is for another base"):
                    interop.parse_adapter(make(other), done.path)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_the_metadata_name_the_base_as_kohyas_trainers_do(kind, tmp_path):
    pipe = make(kind)
    if kind == "flux2":
        pipe.transformer.register_to_config(num_attention_heads=24, attention_head_dim=128)
    attachment.attach(pipe.transformer, "lora", name="Rex")
    done = interop.export(pipe, "Rex", "kohya", tmp_path / "rex.safetensors")
    with safe_open(done.path, "pt") as file:
        facts = file.metadata()
    keys = ("ss_base_model_version", "modelspec.architecture", "modelspec.implementation", "ss_network_module", "ss_v2")
    assert [facts[key] for key in keys] == {
        "sd3": ["5-medium", "stable-diffusion-3-5-medium/lora", "diffusers", "networks.lora_sd3", "False"],
        "flux2": ["flux_2_klein_4b", "Flux.2-klein-4b/lora", "https://github.com/black-forest-labs/flux2",
                  "networks.lora_flux_2", "False"],
    }[kind]  # fmt: skip
    assert "modelspec.prediction_type" not in facts


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_formats_for_a_unet_are_refused(kind, tmp_path):
    pipe, ours = adapted(kind, "lora")
    with pytest.raises(UserError, match=r"single file .* is for Stable Diffusion 1, 2 and XL; save a diffusers folder"):
        interop.export(pipe, "Rex", "merged", tmp_path / "rex.safetensors")
    assert not list(tmp_path.iterdir()) and torch.equal(outputs(pipe), ours)
    with pytest.raises(UserError, match="textual inversion files are for Stable Diffusion 1, 2 and XL, not for a"):
        textual_inversion.imported(pipe, {"sks": {"emb_params": torch.ones(1, 4)}}, {}, "file")
    save_file({"bundle_emb.sks.clip_l": torch.ones(1, 4)}, tmp_path / "words.safetensors")
    with pytest.raises(AdapterImportError, match="it is a textual inversion, not an adapter"):
        interop.parse_adapter(pipe, tmp_path / "words.safetensors")


def test_layers_of_an_encoder_without_a_name_in_the_format_are_refused(tmp_path):
    pipe = make("sd3")
    pipe.text_encoder_3 = torch.nn.Sequential(torch.nn.Linear(2, 2))
    attachment.attach(pipe.text_encoder_3, "lora", {"rank": 1}, name="Rex", targets="0")
    with pytest.raises(UserError, match=r"no program reads layers of this base's text_encoder_3.*use --format peft"):
        interop.export(pipe, "Rex", "kohya", tmp_path / "rex.safetensors")
    assert json.loads((interop.export(pipe, "Rex", "peft", tmp_path / "rex").path / "text_encoder_3"
                       / "adapter_config.json").read_text())["r"] == 1  # fmt: skip
