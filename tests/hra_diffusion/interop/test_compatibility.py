"""The compatibility table: rows whose loader can run here are tested with the program's own loader."""

import pytest
import torch
from conftest import PIPES, ROOT, relative, tiny_text_encoder
from diffusers import DDIMScheduler
from loaders import BOTH, EXACT, LOADERS, TRANSFORMERS, adapted, outputs, with_diffusers, with_from_single_file
from safetensors.torch import load_file, save_file

from hra_diffusion import interop, pipeline
from hra_diffusion.adapters import attachment, registry
from hra_diffusion.adapters.layer import original_weight
from hra_diffusion.interop import compatibility, key_names
from hra_diffusion.interop.compatibility import BY_FORMAT, EXACTLY, TABLE, UNUSABLE
from hra_diffusion.models import noise

METHODS = {"LoRA": "hoft", "DoRA": "shoft", "HRA": "hra", "OFT": "oft", "folder": "hoft", "single file": "hoft"}
RUN = [row for row in TABLE if (row.format, row.program, row.form) in LOADERS]
CASES = [(row, kind) for row in RUN for kind in (("sd",) if "sd" in row.bases else row.bases)]


@pytest.mark.parametrize(("row", "kind"), CASES, ids=lambda x: x if isinstance(x, str) else f"{x.form}-{x.program}")
def test_a_row_agrees_with_its_loader(row, kind, tmp_path):
    pipe, ours = adapted(kind, METHODS[row.form])
    file = row.format in ("kohya", "diffusers") or row.form == "single file"
    done = interop.export(pipe, "Rex", row.format, tmp_path / ("rex.safetensors" if file else "rex"))
    assert row in compatibility.rows(done)
    error = relative(outputs(LOADERS[row.format, row.program, row.form](kind, done.path)), ours)
    assert (error < EXACT) == (row.loads == EXACTLY)


def test_rows_without_a_test_state_how_they_were_checked():
    assert all(row.loads == BY_FORMAT or row.checked for row in TABLE if row not in RUN)
    assert not any(row.checked or row.loads == BY_FORMAT for row in RUN)


def as_comfyui(weight, up, down, magnitude):
    """``weight_decompose`` of ComfyUI a125cd84 (comfy/weight_adapter/base.py) and of Forge dfdcbab6
    (backend/patcher/lora.py) for a magnitude per output: divides by the base's norm."""
    return (weight + up @ down) * magnitude / weight.norm(dim=1, keepdim=True)


def as_invokeai(weight, up, down, magnitude):
    """``DoRALayer.get_weight`` of InvokeAI 8e71a8a5 (invokeai/backend/patches/layers/dora_layer.py) and
    ``apply_weight_decompose`` of AUTOMATIC1111 1.10.1 (extensions-builtin/Lora/network.py): the norm is per input."""
    changed = weight + up @ down
    return changed * magnitude / changed.norm(dim=0, keepdim=True)


def as_onetrainer(weight, up, down, magnitude):
    """``DoRAModule.forward`` of OneTrainer 23df3832 (modules/module/LoRAModule.py), decomposed on the output axis."""
    changed = weight + up @ down
    return changed * magnitude / changed.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("program", "load", "least", "most"),
    [("OneTrainer", as_onetrainer, 0, 1e-5), ("ComfyUI", as_comfyui, 0.01, 0.5), ("Forge", as_comfyui, 0.01, 0.5),
     ("InvokeAI", as_invokeai, 0.5, 10), ("AUTOMATIC1111", as_invokeai, 0.5, 10), ("sd-scripts", None, 0.1, 1)],
)  # fmt: skip
def test_the_error_of_each_programs_dora_formula(program, load, least, most, tmp_path):
    """The error relative to the adapter's change agrees with the table."""
    pipe, _ = adapted("sd", "shoft", "attention+conv")
    done = interop.export(pipe, "Rex", "kohya", tmp_path / "rex.safetensors")
    tensors, error, change = load_file(done.path), 0.0, 0.0
    for component, model in pipeline.components(pipe).items():
        for path, adapter in attachment.adapter_layers(model, "Rex").items():
            weight, key = (
                original_weight(model.get_submodule(path)).flatten(1),
                key_names.kohya_key(pipe, component, path),
            )
            up, down = (tensors[f"{key}.lora_{side}.weight"].flatten(1) for side in ("up", "down"))
            expected = adapter.adapted_weight(weight, 1.0).detach()
            read = load(weight, up, down, tensors[f"{key}.dora_scale"].flatten(1)) if load else weight + up @ down
            error, change = error + (read - expected).square().sum(), change + (expected - weight).square().sum()
    assert least <= float((error / change).sqrt()) < most
    (row,) = [row for row in compatibility.rows(done) if row.program == program]
    assert (row.loads == EXACTLY) == (most < EXACT) and (row.loads == UNUSABLE) == (load is as_invokeai)
    assert row.loads == EXACTLY or "--lora-rank N, or --format merged" in row.how


def test_only_a_kohya_dora_is_loaded_wrongly():
    wrong = {
        (method, format): compatibility.incompatible_programs(method, format)
        for method in registry.method_names()
        for format in interop.FORMATS
    }
    assert [case for case, lines in wrong.items() if lines] == [(name, "kohya") for name in ("shoft", "boft", "dora")]
    assert sum("--lora-rank N" in line for line in wrong["shoft", "kohya"]) == 5


def test_layers_that_diffusers_drops_are_named(tmp_path):
    pipe, _ = adapted("flux2", "lora", r".*(modulation\w*|norm_out)\.linear|.*to_q|x_embedder")
    done = interop.export(pipe, "Rex", "kohya", tmp_path / "rex.safetensors")
    read = with_diffusers("flux2", done.path).transformer
    lost = [path for path in attachment.adapter_layers(pipe.transformer, "Rex")
            if not hasattr(read.get_submodule(path), "lora_A")]  # fmt: skip
    (note,) = compatibility.notes(pipe, "Rex", done)
    assert len(lost) == 4 and f"these layers of the file: {', '.join(lost)}; use --format diffusers" in note


def test_every_export_has_rows(tmp_path):
    pipe, _ = adapted("sd", "lora")
    for format in interop.FORMATS:
        assert compatibility.rows(interop.export(pipe, "Rex", format, tmp_path / format))


@pytest.mark.parametrize(
    ("kind", "method"),
    [("sd", name) for name in registry.method_names()] + [(kind, name) for kind in TRANSFORMERS for name in BOTH],
)
def test_expected_exports_agree_with_the_exports(kind, method, tmp_path):
    pipe, _ = adapted(kind, method)
    paths = {format: tmp_path / format for format in interop.FORMATS}
    paths |= {"single file": tmp_path / "one.safetensors"} if kind == "sd" else {}
    done = [
        interop.export(pipe, "Rex", format.replace("single file", "merged"), path) for format, path in paths.items()
    ]
    assert sorted(
        (row for one in done for row in compatibility.rows(one)), key=TABLE.index
    ) == compatibility.expected_exports(method, kind)


NEEDS = {
    ("sd", "epsilon", False): "",
    ("sd", "v_prediction", False): "diffusers InvokeAI ComfyUI AUTOMATIC1111 Forge sd-scripts",
    ("sd", "v_prediction", True): "diffusers InvokeAI ComfyUI AUTOMATIC1111 Forge sd-scripts",
    ("sd2", "epsilon", False): "diffusers InvokeAI",
    ("sd2", "v_prediction", False): "sd-scripts",
    ("sd2", "v_prediction", True): "diffusers InvokeAI ComfyUI AUTOMATIC1111 sd-scripts",
    ("sdxl", "epsilon", False): "",
    ("sdxl", "v_prediction", False): "diffusers InvokeAI AUTOMATIC1111 sd-scripts",
    ("sdxl", "v_prediction", True): "diffusers InvokeAI AUTOMATIC1111 sd-scripts",
}
"""Programs that need settings for a merged single file, by noise process."""


@pytest.mark.parametrize("case", NEEDS, ids=str)
def test_settings_for_a_noise_process_are_listed(case, tmp_path):
    """In diffusers the printed line, with the released base's configuration, gives our noise process."""
    kind, *process = case
    pipe, _ = adapted(kind, "lora")
    pipe.scheduler = noise.override(pipe.scheduler, *process)
    done = interop.export(pipe, "Rex", "merged", tmp_path / "rex.safetensors")
    needs = compatibility.noise_settings(done)
    assert list(needs) == NEEDS[case].split()
    assert all(
        f"{program}, for the noise process: {what}" in compatibility.lines(done) for program, what in needs.items()
    )
    loaded = with_from_single_file(kind, done.path)
    if "diffusers" in needs:
        exec(needs["diffusers"], {"pipe": loaded, "DDIMScheduler": DDIMScheduler})
    theirs, ours = loaded.scheduler, noise.of(pipe.scheduler)
    assert theirs.config.prediction_type == ours.prediction_type
    torch.testing.assert_close(theirs.alphas_cumprod, ours.alphas_cumprod, atol=1e-6, rtol=1e-6)


def test_the_documentation_has_a_table_row_for_each_entry():
    assert "<!-- generated: compatibility -->" in (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    assert compatibility.markdown().count("\n") == len(TABLE) + 1


def test_a_truncated_lora_is_never_called_exact(tmp_path):
    done = interop.export(adapted("sd", "shoft")[0], "Rex", "kohya", tmp_path / "rex.safetensors", lora_rank=2)
    verdicts = {row.program: compatibility.verdict(done, row) for row in compatibility.rows(done)}
    assert verdicts["diffusers"] == f"approximately, error {done.error:.1%}" and done.error > 0.1


def export_notes(kind, targets, text_targets, folder):
    pipe = PIPES[kind]()
    for component, model in pipeline.components(pipe).items():
        attachment.attach(
            model, "lora", {"rank": 2}, name="Rex", targets=targets if component == "unet" else text_targets
        )
    return compatibility.notes(pipe, "Rex", interop.export(pipe, "Rex", "kohya", folder / "rex.safetensors"))


@pytest.mark.parametrize("kind", PIPES)
def test_layers_that_all_programs_load_have_no_note(kind, tmp_path):
    assert export_notes(kind, "attention+conv", "attention+feed-forward", tmp_path) == []


@pytest.mark.parametrize("kind", PIPES)
def test_layers_that_sd_scripts_never_loads_are_named(kind, tmp_path):
    """sd-scripts creates LoRA in Transformer2DModel, ResnetBlock2D, Downsample2D and Upsample2D only."""
    loaded = r"|.*resnets.*time_emb_proj|.*samplers\.0\.conv|.*attentions.*ff\.net\.2"
    (note,) = export_notes(kind, rf"conv_in|conv_out|time_embedding\.linear_[12]{loaded}", "attention", tmp_path)
    layers = "unet.time_embedding.linear_1, unet.time_embedding.linear_2"
    assert note.startswith("sd-scripts (networks.lora) never loads these layers") and "--format merged" in note
    assert layers in note and "unet.conv_in" in note and "unet.conv_out" in note and "resnets" not in note


@pytest.mark.parametrize(("kind", "attentions"), [("sd", 0), ("sd2", 2), ("sdxl", 2)])
def test_openclip_attention_that_automatic1111_ignores_is_noted(kind, attentions, tmp_path):
    """In AUTOMATIC1111, CLIP's attention has four modules, OpenCLIP's only one."""
    notes = export_notes(kind, "attention", r".*(q_proj|v_proj|mlp\.fc1)", tmp_path)
    assert [f"ignores {attentions} of" in note for note in notes] == ([True] if attentions else [])


def test_a_merged_sd2_file_has_the_text_layers_of_its_base(tmp_path):
    """diffusers loads 23 of 24 and no projection; the rest is copied from the base's single file, if there is one."""
    pipe = PIPES["sd2"]()
    pipe.register_modules(text_encoder=tiny_text_encoder(hidden_act="gelu", num_hidden_layers=23))
    attachment.attach(pipe.unet, "lora", {"rank": 2}, name="Rex")
    done = interop.export(pipe, "Rex", "merged", tmp_path / "folder.safetensors")
    (note,) = compatibility.notes(pipe, "Rex", done)
    assert note.startswith("The file holds 23 of OpenCLIP's 24 text layers, as its base does: ComfyUI warns")

    layer = "cond_stage_model.model.transformer.resblocks.{}."
    base = load_file(done.path)
    last = {
        k.replace(layer.format(22), layer.format(23)): t + 1 for k, t in base.items() if k.startswith(layer.format(22))
    }
    last |= {
        f"cond_stage_model.model.{key}": torch.ones(size)
        for key, size in [("text_projection", (32, 32)), ("logit_scale", ())]
    }
    save_file({key: tensor.half() for key, tensor in (base | last).items()}, tmp_path / "base.safetensors")
    pipe.base_file = tmp_path / "base.safetensors"
    done = interop.export(pipe, "Rex", "merged", tmp_path / "file.safetensors")
    written = load_file(done.path)
    assert compatibility.notes(pipe, "Rex", done) == [] and written.keys() == base.keys() | last.keys()
    assert all(
        written[key].dtype == torch.float32 and torch.equal(written[key], t.half().float()) for key, t in last.items()
    )
    assert all(torch.equal(written[key], tensor) for key, tensor in base.items()), "the rest is the pipeline's"
    pipe.base_file.unlink()
    without = interop.export(pipe, "Rex", "merged", tmp_path / "gone.safetensors")
    assert load_file(without.path).keys() == base.keys(), "without its file the base has 23"
