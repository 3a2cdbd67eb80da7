"""Bases: what is accepted, what is refused and why."""

import json
import shutil

import pytest
from conftest import tiny_pipe

from hra_diffusion.pipeline import BaseModelError, load_base


def test_a_diffusers_folder(base_folder):
    pipe = load_base(str(base_folder), "cpu")
    assert pipe.base_name == "tiny-sd" and pipe.safety_checker is None


def test_low_precision(base_folder):
    import torch

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
    with pytest.raises(BaseModelError, match="pickled checkpoints are not opened"):
        load_base(str(tmp_path / "model.ckpt"), "cpu")


def test_an_inpainting_base_is_refused(tmp_path):
    from diffusers import UNet2DConditionModel

    pipe = tiny_pipe()
    pipe.register_modules(unet=UNet2DConditionModel.from_config({**pipe.unet.config, "in_channels": 9}))
    pipe.save_pretrained(tmp_path / "inpaint")
    assert (
        json.loads((tmp_path / "inpaint" / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    )
    with pytest.raises(BaseModelError, match="inpainting"):
        load_base(str(tmp_path / "inpaint"), "cpu")


def test_a_device_that_is_not_there(base_folder):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(BaseModelError, match="no CUDA device"):
        load_base(str(base_folder), "cuda")
