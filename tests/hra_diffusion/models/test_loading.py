"""Bases: what is accepted, what is refused and why."""

import json
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import PIPES, everything, tiny_pipe, tiny_xl_pipe
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file

from hra_diffusion import interop
from hra_diffusion.adapters import attachment
from hra_diffusion.errors import BaseModelError, Note
from hra_diffusion.interop.checkpoint import state_dict
from hra_diffusion.models import meta, noise, single_file, sources
from hra_diffusion.models.families.architectures import PREDICTION_KEY, SD1, SD2, SD2_BASE, SDXL, Architecture
from hra_diffusion.models.loading import load_base
from training import config as configs
from training import loop
from training.session.phase_timer import PhaseTimer


def test_a_diffusers_folder(base_folder):
    pipe = load_base(str(base_folder), "cpu")
    assert pipe.base_name == "tiny-sd" and pipe.safety_checker is None


def test_threads_that_load_at_once_leave_torch_as_it_was(base_folder):
    with ThreadPoolExecutor(3) as threads:
        loaded = list(threads.map(load_base, [str(base_folder)] * 6, ["cpu"] * 6))
    assert all(torch.equal(everything(pipe), everything(loaded[0])) for pipe in loaded)
    assert torch.nn.Linear(1, 1).weight.device.type == "cpu"


@pytest.mark.parametrize("kind", PIPES)
def test_a_folder_of_every_family(kind, tmp_path):
    PIPES[kind]().save_pretrained(tmp_path / "base")
    loaded = load_base(str(tmp_path / "base"), "cpu")
    assert type(loaded) is type(PIPES[kind]()) and torch.equal(everything(loaded), everything(PIPES[kind]()))


def test_an_xl_refiner_is_refused(tmp_path):
    pipe = tiny_xl_pipe()
    parts = {name: part for name, part in pipe.components.items() if name not in ("text_encoder", "tokenizer")}
    StableDiffusionXLPipeline(**parts, text_encoder=None, tokenizer=None).save_pretrained(tmp_path / "refiner")
    with pytest.raises(BaseModelError, match="a text encoder is missing: an SDXL refiner"):
        load_base(str(tmp_path / "refiner"), "cpu")


def as_single_file(kind, folder):
    """A tiny pipeline as a checkpoint in the original layout with the vocabulary beside it, and its architecture."""
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
    """The configurations of a tiny pipeline."""
    encoders = tuple(getattr(pipe, n).config.to_dict() for n in ("text_encoder", "text_encoder_2") if hasattr(pipe, n))
    shape = {"sd": SD1, "sd2": SD2, "sdxl": SDXL}[kind]
    values = (dict(pipe.unet.config), dict(pipe.vae.config), encoders, shape.scheduler)
    return Architecture(kind, shape.pipeline, *values, pads=("<|endoftext|>",) * len(encoders))


@pytest.mark.parametrize("kind", PIPES)
@pytest.mark.parametrize("process", [("epsilon", False), ("v_prediction", False), ("v_prediction", True)])
def test_a_merged_single_file_comes_back_with_its_noise_process(kind, process, tmp_path):
    """Written by export, read by our loader; the empty tensors are where ComfyUI, AUTOMATIC1111 and Forge look."""
    pipe, place, architecture = as_single_file(kind, tmp_path / "single")
    pipe.scheduler = noise.override(pipe.scheduler, *process)
    attachment.attach(pipe.unet, "lora", {"rank": 2}, name="Rex")
    path = interop.export(pipe, "Rex", "merged", place.parent / "merged.safetensors").path
    velocity, zero_snr = process[0] == "v_prediction", process[1]
    with safe_open(path, "pt") as file:
        assert ("v_pred" in file.keys(), "ztsnr" in file.keys()) == (velocity, zero_snr)  # noqa: SIM118
        assert file.metadata()[PREDICTION_KEY] == ("v" if velocity else "epsilon")
    shape = {"sd": SD1, "sd2": SD2, "sdxl": SDXL}[kind]
    found = single_file.detect_noise(path, shape)
    assert (found.prediction_type, found.zero_snr, found.note) == (*process, "")
    loaded = single_file.load_with_architecture(path, architecture.predicting(*process), torch.float32)
    assert torch.equal(everything(loaded), everything(pipe))
    back, wanted = noise.of(loaded.scheduler), noise.of(pipe.scheduler)
    assert (back.prediction_type, back.zero_snr) == process
    torch.testing.assert_close(back.alphas_cumprod, wanted.alphas_cumprod)


@pytest.mark.parametrize("kind", PIPES)
def test_a_single_file_opens_without_a_network(kind, tmp_path):
    pipe, path, architecture = as_single_file(kind, tmp_path / "single")
    loaded = single_file.load_with_architecture(path, architecture, torch.float32)
    assert torch.equal(everything(loaded), everything(pipe))
    assert loaded.scheduler.config.prediction_type == ("v_prediction" if kind == "sd2" else "epsilon")
    assert loaded.tokenizer("a dog").input_ids == pipe.tokenizer("a dog").input_ids


def test_a_base_knows_its_single_file(tmp_path, base_folder, monkeypatch):
    """Export takes from it what diffusers does not load."""
    _, path, architecture = as_single_file("sd", tmp_path / "single")
    monkeypatch.setattr(single_file, "detect_architecture", lambda *_: architecture)
    assert load_base(str(path), "cpu").base_file == path.resolve()
    assert load_base(str(base_folder), "cpu").base_file is None


def test_without_a_vocabulary_it_says_where_to_put_one(tmp_path):
    _, path, architecture = as_single_file("sd", tmp_path / "single")
    shutil.rmtree(path.parent / "tokenizer")
    with pytest.raises(BaseModelError, match=r"put CLIP's vocab.json and merges.txt beside it"):
        single_file.load_with_architecture(path, architecture, torch.float32)


UNET = "model.diffusion_model."
LATENTS = {f"{UNET}input_blocks.0.0.weight": (2, 4, 3, 3)}
WIDTH = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
HEADERS = {
    "inpainting": ({f"{UNET}input_blocks.0.0.weight": (2, 9, 3, 3)}, "takes 9 channels, not 4: an inpainting"),
    "refiner": (LATENTS | {"conditioner.embedders.0.model.ln_final.weight": (2,)}, "an SDXL refiner"),
    "another width": (LATENTS | {WIDTH: (2, 640)}, "its text is 640 wide, not 768 or 1024"),
    "no text encoder": (LATENTS | {WIDTH: (2, 768)}, "has no text encoder"),
    "an adapter": (
        {"lora_unet_x.lora_up.weight": (2, 2)},
        "an adapter, not a base: bring it in with hra-diffusion import",
    ),
    "a diffusers part": ({"down_blocks.0.resnets.0.conv1.weight": (2, 2)}, "a part of a model"),
    "something": ({"weight": (2,)}, "no checkpoint in the original layout"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_file_that_is_no_base_is_told_what_it_is(case, tmp_path):
    shapes, message = HEADERS[case]
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "model.safetensors")
    with pytest.raises(BaseModelError, match=message):
        load_base(str(tmp_path / "model.safetensors"), "cpu")


def checkpoint(path, architecture, facts=None, marks=()):
    """A checkpoint's header of this architecture, with metadata and the keys of empty tensors."""
    width = {SD1: 768, SD2: 1024, SDXL: 2048}[architecture]
    text = "conditioner.embedders.1.x" if architecture is SDXL else "cond_stage_model.x"
    tensors = {key: torch.zeros(shape) for key, shape in (LATENTS | {WIDTH: (2, width), text: (1,)}).items()}
    save_file(tensors | {key: torch.empty(0) for key in marks}, path, facts)
    return path


V, V_ZERO, EPSILON = ("v_prediction", False), ("v_prediction", True), ("epsilon", False)


@pytest.mark.parametrize("architecture", [SD1, SD2, SDXL], ids=["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize(
    ("facts", "marks", "expected"),
    [
        ({PREDICTION_KEY: "epsilon"}, (), EPSILON),
        ({PREDICTION_KEY: "v"}, (), V),
        ({PREDICTION_KEY: "v_prediction"}, ("ztsnr",), V_ZERO),
        ({}, ("v_pred",), V),
        ({}, ("v_pred", "ztsnr"), V_ZERO),
        ({PREDICTION_KEY: "epsilon"}, ("ztsnr",), EPSILON),  # as ComfyUI, which reads the one within the other
    ],
)
def test_a_single_file_says_its_noise_process(architecture, facts, marks, expected, tmp_path):
    path = checkpoint(tmp_path / "model-512.safetensors", architecture, facts, marks)
    noise = single_file.detect_noise(path, architecture)
    assert (noise.prediction_type, noise.zero_snr) == expected
    assert ("the mark is ignored" in noise.note) == ("ztsnr" in marks and not noise.zero_snr), noise.note
    asked = single_file.detect_noise(path, architecture, "v_prediction" if expected == EPSILON else "epsilon")
    assert asked.prediction_type != noise.prediction_type, "what is asked for goes before what is said"
    small = architecture is SD2 and expected == EPSILON
    assert single_file.detect_architecture(path) is (SD2_BASE if small else architecture)


def test_a_tensor_goes_before_metadata_and_that_is_said(tmp_path):
    path = checkpoint(tmp_path / "a.safetensors", SDXL, {PREDICTION_KEY: "epsilon"}, ["v_pred"])
    noise = single_file.detect_noise(path, SDXL)
    assert noise.prediction_type == "v_prediction" and "its metadata epsilon; v_prediction is used" in noise.note


@pytest.mark.parametrize(
    ("facts", "marks", "message"),
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
def test_a_single_file_of_another_process_is_refused(facts, marks, message, tmp_path):
    path = checkpoint(tmp_path / "a.safetensors", SDXL, facts, marks)
    with pytest.raises(BaseModelError, match=message):
        load_base(str(path), "cpu")


@pytest.mark.parametrize("name", ["v2-1_512-ema-pruned", "v2-1_768-ema-pruned"])
@pytest.mark.parametrize(("spread", "expected", "other"), [(0.2, SD2, "epsilon"), (0.05, SD2_BASE, "v_prediction")])
def test_a_version_2_without_marks_is_decided_by_its_weights_and_that_is_said(name, spread, expected, other, tmp_path):
    """ComfyUI's rule (comfy/supported_models.py at a125cd84): the standard deviation of these biases, over 0.09."""
    shapes = LATENTS | {WIDTH: (2, 1024), "cond_stage_model.x": (1,)}
    tensors = {key: torch.zeros(shape) for key, shape in shapes.items()}
    tensors[f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"] = torch.tensor([-spread, spread]).half()
    path = tmp_path / f"{name}.safetensors"
    save_file(tensors, path)
    assert single_file.detect_architecture(path) is expected and sources.base_version(str(path)) == "sd2"
    assert (
        f"If its pictures are noise or flat, add --prediction-type {other}" in single_file.detect_noise(path, SD2).note
    )
    with pytest.warns(Note, match="does not say what it predicts"), pytest.raises(BaseModelError):
        load_base(str(path), "cpu")  # there is no more of it than this
    save_file(tensors | {"ztsnr": torch.empty(0)}, path)
    assert single_file.detect_noise(path, SD2).zero_snr == (expected is SD2), "its mark counts beside the weights"


def test_a_prediction_type_that_is_given_counts_for_the_shapes_and_the_version_too(tmp_path):
    path = checkpoint(tmp_path / "a.safetensors", SD2, {PREDICTION_KEY: "flow"})
    assert sources.base_version(str(path)) == "sd2"
    assert meta.architecture(str(path), "epsilon") is SD2_BASE
    with pytest.raises(BaseModelError, match="--prediction-type"):
        meta.architecture(str(path))


@pytest.mark.parametrize("kind", ["stable-diffusion-v2-512", "stable-diffusion-v2-768-v"])
def test_a_version_2_may_be_told_by_its_architecture(kind, tmp_path):
    path = checkpoint(tmp_path / "a.safetensors", SD2, {"modelspec.architecture": kind})
    assert single_file.detect_architecture(path) is (SD2_BASE if kind.endswith("512") else SD2)
    assert not single_file.detect_noise(path, SD2).note


@pytest.mark.parametrize(
    ("name", "kind"), [("a/sd-xl-base", "sdxl"), ("a/stable-diffusion-2-1", "sd2"), ("a/b", "sd1")]
)
def test_a_hub_id_that_is_not_here_is_known_by_its_name(name, kind):
    assert sources.base_version(name) == kind and sources.base_version("toybox") == "toybox"


def test_a_folder_is_known_by_its_unet(tmp_path):
    tiny_xl_pipe().save_pretrained(tmp_path / "xl")
    assert sources.base_version(str(tmp_path / "xl")) == "sdxl"
    config = configs.parse({"name": "a", "photos": ["b"], "class_noun": "dog", "base": str(tmp_path / "xl")})
    assert config.gradient_checkpointing and config.options["rank"] == 8
    (tmp_path / "xl" / "unet" / "config.json").write_text('{"cross_attention_dim": 1024}')
    assert sources.base_version(str(tmp_path / "xl")) == "sd2"
    (tmp_path / "xl" / "unet" / "config.json").write_text("[")
    assert sources.base_version(str(tmp_path / "xl")) == "sd1"


def test_low_precision(base_folder):
    assert load_base(str(base_folder), "cpu", "bfloat16").unet.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no-such-model", "not a folder, not a .safetensors file, not a hub id"),
        ("../outside", "not a folder"),
        ("/nowhere/at/all", "not a folder"),
        ("someone/some-model", "can't be loaded"),
    ],
)
def test_a_missing_base(source, message):
    with pytest.raises(BaseModelError, match=message):
        load_base(source, "cpu")


def test_an_empty_folder(tmp_path):
    with pytest.raises(BaseModelError, match=r"no model_index.json: not a diffusers model folder"):
        load_base(str(tmp_path), "cpu")


def test_a_damaged_folder(base_folder, tmp_path):
    broken = shutil.copytree(base_folder, tmp_path / "broken")
    next(broken.glob("unet/*.safetensors")).unlink()
    with pytest.raises(BaseModelError, match="can't be loaded"):
        load_base(str(broken), "cpu")


def test_a_truncated_part(base_folder, tmp_path):
    broken = shutil.copytree(base_folder, tmp_path / "broken")
    weights = next(broken.glob("text_encoder/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BaseModelError, match="can't be loaded"):
        load_base(str(broken), "cpu")


@pytest.mark.parametrize(
    ("index", "message"), [('{"_class_name": "FluxPipeline"}', "is a FluxPipeline"), ("[", "damaged")]
)
def test_not_stable_diffusion(tmp_path, index, message):
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(BaseModelError, match=message):
        load_base(str(tmp_path), "cpu")


def test_a_pickled_checkpoint_is_not_opened(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(BaseModelError, match=r"pickled checkpoints can run code and are not opened.*docs/bases\.md"):
        load_base(str(tmp_path / "model.ckpt"), "cpu")


def test_an_inpainting_base_is_refused(tmp_path):
    pipe = tiny_pipe()
    pipe.register_modules(unet=UNet2DConditionModel.from_config({**pipe.unet.config, "in_channels": 9}))
    pipe.save_pretrained(tmp_path / "inpaint")
    assert (
        json.loads((tmp_path / "inpaint" / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    )
    with pytest.raises(BaseModelError, match="inpainting"):
        load_base(str(tmp_path / "inpaint"), "cpu")


def test_a_device_that_is_not_there(base_folder):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(BaseModelError, match="no CUDA device"):
        load_base(str(base_folder), "cuda")


def save_variant(folder, **options):
    """A tiny base saved in another way; its UNet's weights."""
    pipe = tiny_pipe()
    pipe.save_pretrained(folder, **options)
    return pipe


@pytest.mark.parametrize("options", [{"variant": "fp16"}, {"variant": "fp16", "max_shard_size": "300KB"}])
def test_a_folder_that_holds_one_variant_only_is_loaded_by_it_and_says_so(options, tmp_path):
    pipe = save_variant(tmp_path / "base", **options)
    with pytest.warns(UserWarning, match=r"base holds its weights as variant fp16 only"):
        loaded = load_base(str(tmp_path / "base"), "cpu")
    assert torch.equal(everything(loaded), everything(pipe))


def test_one_part_in_another_variant_is_enough(base_folder, tmp_path):
    folder = shutil.copytree(base_folder, tmp_path / "base")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.warns(UserWarning, match="variant fp16 only: vae"):
        assert load_base(str(folder), "cpu").base_name == "base"


def test_a_hub_cache_that_holds_one_variant_only(tmp_path, monkeypatch):
    place = tmp_path / "models--someone--tiny"
    save_variant(place / "snapshots" / "abc", variant="fp16")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.warns(UserWarning, match=r"someone/tiny holds its weights as variant fp16 only"):
        assert load_base("someone/tiny", "cpu").base_name == "someone/tiny"


def test_a_run_says_so_in_a_notice(tmp_path):
    save_variant(tmp_path / "base", variant="fp16")
    config = configs.parse({"name": "Rex", "photos": ["."], "class_noun": "dog", "base": str(tmp_path / "base")})
    heard = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.load_base(config, "cpu", PhaseTimer(True, [heard.append]))
    assert ["variant fp16 only" in event.message for event in heard] == [True]


def test_a_folder_in_shards_is_loaded_and_a_missing_shard_is_named(tmp_path):
    pipe = save_variant(tmp_path / "base", max_shard_size="300KB")
    assert torch.equal(everything(load_base(str(tmp_path / "base"), "cpu")), everything(pipe))
    shard = sorted((tmp_path / "base" / "unet").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(BaseModelError, match=rf"unet/{shard.name} is missing; copy the model again") as error:
        load_base(str(tmp_path / "base"), "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["[1]", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}', "{"])
def test_a_damaged_index_of_shards_is_named(damage, base_folder, tmp_path):
    folder = shutil.copytree(base_folder, tmp_path / "base")
    (folder / "unet" / "x.safetensors.index.json").write_text(damage)
    with pytest.raises(BaseModelError, match=r"x\.safetensors\.index\.json is damaged; copy the model again"):
        load_base(str(folder), "cpu")


@pytest.mark.parametrize("cached", [False, True], ids=["folder", "cache"])
def test_weights_that_are_pickles_get_the_remedy_in_one_line(cached, tmp_path, monkeypatch):
    folder, source = tmp_path / "base", str(tmp_path / "base")
    if cached:
        place, source = tmp_path / "models--someone--tiny", "someone/tiny"
        folder = place / "snapshots" / "abc"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("abc")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    save_variant(folder, safe_serialization=False)
    with pytest.raises(BaseModelError, match=rf"{source} holds unet, vae as pickles .*docs/bases.md says") as error:
        load_base(source, "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["C:/models/sd15", r"C:\models\sd15", "~/sd15", "a/b/c", ".hidden/x"])
def test_a_path_that_is_not_there_is_no_hub_id(source):
    with pytest.raises(BaseModelError, match=r"not a folder, .* not a hub id"):
        load_base(source, "cpu")
