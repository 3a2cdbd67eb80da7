"""Single-file checkpoints: loading, detection of architecture and noise process, and errors."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import PIPES, everything, relative
from safetensors import safe_open
from safetensors.torch import save_file

from hra_diffusion import interop
from hra_diffusion.adapters import attachment
from hra_diffusion.errors import BaseModelError, Note
from hra_diffusion.interop.checkpoint import state_dict
from hra_diffusion.models import meta, noise, single_file, sources
from hra_diffusion.models.families.architectures import PREDICTION_KEY, SD1, SD2, SD2_BASE, SDXL
from hra_diffusion.models.loading import load_base


def save_single_file(kind, folder):
    """Save a tiny pipeline as a checkpoint with a vocabulary; returns the pipeline, the path and its architecture."""
    pipe = PIPES[kind]()
    folder.mkdir()
    path = folder / "model.safetensors"
    save_file(state_dict(pipe), path)
    pipe.tokenizer.save_pretrained(folder / "tokenizer")
    vocabulary = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary["vocab"]))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    return pipe, path, tiny_architecture(kind, pipe)


def tiny_architecture(kind, pipe):
    """Return the configurations of a tiny pipeline."""
    shape = {"sd": SD1, "sd2": SD2, "sdxl": SDXL}[kind]
    encoders = tuple(
        released | getattr(pipe, name).config.to_dict() | {"architectures": released["architectures"]}
        for name, released in zip(("text_encoder", "text_encoder_2"), shape.encoders, strict=False)
    )
    denoiser, vae = shape.denoiser | pipe.unet.config, shape.vae | pipe.vae.config
    pads = ("<|endoftext|>",) * len(encoders)
    return replace(shape, name=kind, denoiser=denoiser, vae=vae, encoders=encoders, pads=pads)


@pytest.mark.parametrize("kind", PIPES)
@pytest.mark.parametrize("process", [("epsilon", False), ("v_prediction", False), ("v_prediction", True)])
def test_a_merged_export_keeps_its_noise_process(kind, process, tmp_path):
    """ComfyUI, AUTOMATIC1111 and Forge read it from empty tensors."""
    pipe, original, architecture = save_single_file(kind, tmp_path / "single")
    pipe.scheduler = noise.override(pipe.scheduler, *process)
    attachment.attach(pipe.unet, "lora", {"rank": 2}, name="Rex")
    path = interop.export(pipe, "Rex", "merged", original.parent / "merged.safetensors").path
    velocity, zero_snr = process[0] == "v_prediction", process[1]
    with safe_open(path, "pt") as file:
        assert ("v_pred" in file.keys(), "ztsnr" in file.keys()) == (velocity, zero_snr)  # noqa: SIM118
        assert file.metadata()[PREDICTION_KEY] == ("v" if velocity else "epsilon")
    shape = {"sd": SD1, "sd2": SD2, "sdxl": SDXL}[kind]
    found = single_file.detect_noise(path, shape)
    assert (found.prediction_type, found.zero_snr, found.note) == (*process, "")
    loaded = single_file.load_with_architecture(path, architecture.predicting(*process), torch.float32)
    assert relative(everything(loaded), everything(pipe)) < 1e-5
    found, expected = noise.of(loaded.scheduler), noise.of(pipe.scheduler)
    assert (found.prediction_type, found.zero_snr) == process
    torch.testing.assert_close(found.alphas_cumprod, expected.alphas_cumprod)


@pytest.mark.parametrize("kind", PIPES)
def test_loading_without_a_network(kind, tmp_path):
    pipe, path, architecture = save_single_file(kind, tmp_path / "single")
    loaded = single_file.load_with_architecture(path, architecture, torch.float32)
    assert torch.equal(everything(loaded), everything(pipe))
    assert loaded.scheduler.config.prediction_type == ("v_prediction" if kind == "sd2" else "epsilon")
    assert loaded.tokenizer("a dog").input_ids == pipe.tokenizer("a dog").input_ids


def test_the_pipeline_has_the_path_of_its_single_file(tmp_path, base_folder, monkeypatch):
    """Export reads the tensors from it that diffusers does not load."""
    _, path, architecture = save_single_file("sd", tmp_path / "single")
    monkeypatch.setattr(single_file, "detect_architecture", lambda *_: architecture)
    assert load_base(str(path), "cpu").base_file == path.resolve()
    assert load_base(str(base_folder), "cpu").base_file is None


def test_a_missing_vocabulary(tmp_path):
    _, path, architecture = save_single_file("sd", tmp_path / "single")
    shutil.rmtree(path.parent / "tokenizer")
    with pytest.raises(BaseModelError, match=r"put CLIP's vocab.json and merges.txt beside it"):
        single_file.load_with_architecture(path, architecture, torch.float32)


UNET = "model.diffusion_model."
LATENTS = {f"{UNET}input_blocks.0.0.weight": (2, 4, 3, 3)}
WIDTH = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
HEADERS = {
    "inpainting": ({f"{UNET}input_blocks.0.0.weight": (2, 9, 3, 3)}, "takes 9 channels, not 4: an inpainting"),
    "refiner": (LATENTS | {"conditioner.embedders.0.model.ln_final.weight": (2,)}, "an SDXL refiner"),
    "another width": (LATENTS | {WIDTH: (2, 640)}, "its text embeddings have width 640, not 768 or 1024"),
    "no text encoder": (LATENTS | {WIDTH: (2, 768)}, "has no text encoder"),
    "an adapter": (
        {"lora_unet_x.lora_up.weight": (2, 2)},
        "an adapter, not a base model: import it with hra-diffusion import",
    ),
    "a diffusers part": ({"down_blocks.0.resnets.0.conv1.weight": (2, 2)}, "one component, or another kind of model"),
    "something": ({"weight": (2,)}, "not a checkpoint in the original layout"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_other_files_are_described_in_the_error(case, tmp_path):
    shapes, message = HEADERS[case]
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "model.safetensors")
    with pytest.raises(BaseModelError, match=message):
        load_base(str(tmp_path / "model.safetensors"), "cpu")


def save_checkpoint(path, architecture, metadata=None, markers=()):
    """Save the tensors that identify an architecture, with metadata and empty tensors named ``markers``."""
    width = {SD1: 768, SD2: 1024, SDXL: 2048}[architecture]
    text = "conditioner.embedders.1.x" if architecture is SDXL else "cond_stage_model.x"
    tensors = {key: torch.zeros(shape) for key, shape in (LATENTS | {WIDTH: (2, width), text: (1,)}).items()}
    save_file(tensors | {key: torch.empty(0) for key in markers}, path, metadata)
    return path


V, V_ZERO, EPSILON = ("v_prediction", False), ("v_prediction", True), ("epsilon", False)


@pytest.mark.parametrize("architecture", [SD1, SD2, SDXL], ids=["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize(
    ("metadata", "markers", "expected"),
    [
        ({PREDICTION_KEY: "epsilon"}, (), EPSILON),
        ({PREDICTION_KEY: "v"}, (), V),
        ({PREDICTION_KEY: "v_prediction"}, ("ztsnr",), V_ZERO),
        ({}, ("v_pred",), V),
        ({}, ("v_pred", "ztsnr"), V_ZERO),
        ({PREDICTION_KEY: "epsilon"}, ("ztsnr",), EPSILON),  # as in ComfyUI, which reads ztsnr only for v_prediction
    ],
)
def test_detected_noise_process(architecture, metadata, markers, expected, tmp_path):
    path = save_checkpoint(tmp_path / "model-512.safetensors", architecture, metadata, markers)
    noise = single_file.detect_noise(path, architecture)
    assert (noise.prediction_type, noise.zero_snr) == expected
    assert ("so ztsnr is ignored" in noise.note) == ("ztsnr" in markers and not noise.zero_snr), noise.note
    overridden = single_file.detect_noise(path, architecture, "v_prediction" if expected == EPSILON else "epsilon")
    assert overridden.prediction_type != noise.prediction_type
    is_sd2_base = architecture is SD2 and expected == EPSILON
    assert single_file.detect_architecture(path) is (SD2_BASE if is_sd2_base else architecture)


def test_a_tensor_key_overrides_metadata_with_a_note(tmp_path):
    path = save_checkpoint(tmp_path / "a.safetensors", SDXL, {PREDICTION_KEY: "epsilon"}, ["v_pred"])
    noise = single_file.detect_noise(path, SDXL)
    assert noise.prediction_type == "v_prediction" and "its metadata epsilon; v_prediction is used" in noise.note


@pytest.mark.parametrize(
    ("metadata", "markers", "message"),
    [
        ({}, ("edm_mean", "edm_std"), "EDM's noise levels"),
        ({}, ("v_pred", "edm_vpred.sigma_max"), "EDM's noise levels"),
        (
            {PREDICTION_KEY: "flow"},
            (),
            "'flow', which is neither epsilon nor v; .* add --prediction-type",
        ),
    ],
)
def test_an_unsupported_noise_process_is_refused(metadata, markers, message, tmp_path):
    path = save_checkpoint(tmp_path / "a.safetensors", SDXL, metadata, markers)
    with pytest.raises(BaseModelError, match=message):
        load_base(str(path), "cpu")


@pytest.mark.parametrize("name", ["v2-1_512-ema-pruned", "v2-1_768-ema-pruned"])
@pytest.mark.parametrize(("spread", "expected", "other"), [(0.2, SD2, "epsilon"), (0.05, SD2_BASE, "v_prediction")])
def test_sd2_without_markers_is_classified_by_its_weights_with_a_note(name, spread, expected, other, tmp_path):
    """ComfyUI's rule (comfy/supported_models.py at a125cd84): v_prediction if the biases vary by more than 0.09."""
    shapes = LATENTS | {WIDTH: (2, 1024), "cond_stage_model.x": (1,)}
    tensors = {key: torch.zeros(shape) for key, shape in shapes.items()}
    tensors[f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"] = torch.tensor([-spread, spread]).half()
    path = tmp_path / f"{name}.safetensors"
    save_file(tensors, path)
    assert single_file.detect_architecture(path) is expected and sources.base_version(str(path)) == "sd2"
    assert (
        f"If its pictures are noise or flat, add --prediction-type {other}" in single_file.detect_noise(path, SD2).note
    )
    with pytest.warns(Note, match="does not state what it predicts"), pytest.raises(BaseModelError):
        load_base(str(path), "cpu")  # the file has no other tensors
    save_file(tensors | {"ztsnr": torch.empty(0)}, path)
    assert single_file.detect_noise(path, SD2).zero_snr == (expected is SD2)


def test_prediction_type_overrides_the_detected_architecture(tmp_path):
    path = save_checkpoint(tmp_path / "a.safetensors", SD2, {PREDICTION_KEY: "flow"})
    assert sources.base_version(str(path)) == "sd2"
    assert meta.architecture(str(path), "epsilon") is SD2_BASE
    with pytest.raises(BaseModelError, match="--prediction-type"):
        meta.architecture(str(path))


@pytest.mark.parametrize("kind", ["stable-diffusion-v2-512", "stable-diffusion-v2-768-v"])
def test_sd2_is_classified_by_its_modelspec_architecture(kind, tmp_path):
    path = save_checkpoint(tmp_path / "a.safetensors", SD2, {"modelspec.architecture": kind})
    assert single_file.detect_architecture(path) is (SD2_BASE if kind.endswith("512") else SD2)
    assert not single_file.detect_noise(path, SD2).note


def test_a_pickled_checkpoint_is_refused(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(BaseModelError, match=r"pickled checkpoints can run code and are not opened.*docs/bases\.md"):
        load_base(str(tmp_path / "model.ckpt"), "cpu")
