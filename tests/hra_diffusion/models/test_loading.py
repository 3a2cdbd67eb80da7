"""Loading base models, and the errors for unsupported ones."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import PIPES, everything, tiny_pipe, tiny_xl_pipe
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from hra_diffusion.errors import BaseModelError
from hra_diffusion.models.loading import load_base


def test_loading_a_folder(base_folder):
    pipe = load_base(str(base_folder), "cpu")
    assert pipe.base_name == "tiny-sd" and pipe.safety_checker is None


def test_concurrent_loading_does_not_change_torch(base_folder):
    with ThreadPoolExecutor(3) as threads:
        loaded = list(threads.map(load_base, [str(base_folder)] * 6, ["cpu"] * 6))
    assert all(torch.equal(everything(pipe), everything(loaded[0])) for pipe in loaded)
    assert torch.nn.Linear(1, 1).weight.device.type == "cpu"


@pytest.mark.parametrize("kind", PIPES)
def test_loading_folders_of_every_family(kind, tmp_path):
    PIPES[kind]().save_pretrained(tmp_path / "base")
    loaded = load_base(str(tmp_path / "base"), "cpu")
    assert type(loaded) is type(PIPES[kind]()) and torch.equal(everything(loaded), everything(PIPES[kind]()))


def test_an_sdxl_refiner_is_refused(tmp_path):
    pipe = tiny_xl_pipe()
    parts = {name: part for name, part in pipe.components.items() if name not in ("text_encoder", "tokenizer")}
    StableDiffusionXLPipeline(**parts, text_encoder=None, tokenizer=None).save_pretrained(tmp_path / "refiner")
    with pytest.raises(BaseModelError, match="a text encoder is missing: an SDXL refiner"):
        load_base(str(tmp_path / "refiner"), "cpu")


def test_loading_in_low_precision(base_folder):
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
def test_a_missing_base_model(source, message):
    with pytest.raises(BaseModelError, match=message):
        load_base(source, "cpu")


def test_missing_weights(base_folder, tmp_path):
    broken = shutil.copytree(base_folder, tmp_path / "broken")
    next(broken.glob("unet/*.safetensors")).unlink()
    with pytest.raises(BaseModelError, match="can't be loaded"):
        load_base(str(broken), "cpu")


def test_truncated_weights(base_folder, tmp_path):
    broken = shutil.copytree(base_folder, tmp_path / "broken")
    weights = next(broken.glob("text_encoder/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BaseModelError, match="can't be loaded"):
        load_base(str(broken), "cpu")


def test_an_inpainting_model_is_refused(tmp_path):
    pipe = tiny_pipe()
    pipe.register_modules(unet=UNet2DConditionModel.from_config({**pipe.unet.config, "in_channels": 9}))
    pipe.save_pretrained(tmp_path / "inpaint")
    assert (
        json.loads((tmp_path / "inpaint" / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    )
    with pytest.raises(BaseModelError, match="inpainting"):
        load_base(str(tmp_path / "inpaint"), "cpu")


def test_an_unavailable_device(base_folder):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(BaseModelError, match="no CUDA device"):
        load_base(str(base_folder), "cuda")


@pytest.mark.parametrize("source", ["C:/models/sd15", r"C:\models\sd15", "~/sd15", "a/b/c", ".hidden/x"])
def test_a_missing_path_is_not_a_hub_id(source):
    with pytest.raises(BaseModelError, match=r"not a folder, .* not a hub id"):
        load_base(source, "cpu")


def test_revision_variant_and_token_reach_every_request_to_the_hub(monkeypatch, base_folder):
    asked = []

    def record(original):
        def replaced(source, *positional, **options):
            asked.append((source, {name: options.pop(name, None) for name in ("revision", "token", "variant")}))
            return original(str(base_folder), *positional, **options)

        return replaced

    for kind, name in (
        (DiffusionPipeline, "load_config"), (DDIMScheduler, "load_config"), (StableDiffusionPipeline, "from_pretrained")
    ):  # fmt: skip
        monkeypatch.setattr(kind, name, record(getattr(kind, name)))
    pipe = load_base("tester/tiny-sd", "cpu", revision="v2", variant="fp16", token="secret")
    place = {"revision": "v2", "token": "secret", "variant": None}
    assert asked[:2] == [("tester/tiny-sd", place)] * 2
    assert ("tester/tiny-sd", place | {"variant": "fp16"}) in asked[2:]
    assert "secret" not in str(vars(pipe)) and "secret" not in str(pipe.config)


def test_a_variant_of_a_folder_is_loaded(tmp_path):
    pipe = tiny_pipe()
    pipe.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        pipe.unet.conv_in.bias.add_(1)
    pipe.save_pretrained(tmp_path / "base", variant="fp16")
    for variant, expected in (("fp16", pipe), (None, tiny_pipe())):
        loaded = load_base(str(tmp_path / "base"), "cpu", variant=variant)
        assert torch.equal(everything(loaded), everything(expected))
    with pytest.raises(BaseModelError, match="variant=bf16"):
        load_base(str(tmp_path / "base"), "cpu", variant="bf16")


def test_revisions_and_variants_of_what_has_none(base_folder, tmp_path):
    (tmp_path / "one.safetensors").touch()
    with pytest.raises(BaseModelError, match="only hub ids have revisions, not 'v2'"):
        load_base(str(base_folder), "cpu", revision="v2")
    with pytest.raises(BaseModelError, match="only folders and hub ids have variants, not 'fp16'"):
        load_base(str(tmp_path / "one.safetensors"), "cpu", variant="fp16")
