"""Model folders: variants, shards, pickles and damaged files."""

import shutil
import warnings

import pytest
import torch
from conftest import everything, tiny_pipe

from hra_diffusion.errors import BaseModelError
from hra_diffusion.models.loading import load_base
from training import config as configs
from training import loop
from training.session.phase_timer import PhaseTimer


def test_a_folder_without_a_model_index(tmp_path):
    with pytest.raises(BaseModelError, match=r"no model_index.json: not a diffusers model folder"):
        load_base(str(tmp_path), "cpu")


@pytest.mark.parametrize(
    ("index", "message"), [('{"_class_name": "FluxPipeline"}', "is a FluxPipeline"), ("[", "damaged")]
)
def test_a_model_index_that_is_not_stable_diffusion(tmp_path, index, message):
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(BaseModelError, match=message):
        load_base(str(tmp_path), "cpu")


def save_tiny_pipe(folder, **options):
    """Save a tiny pipeline with options of ``save_pretrained``; returns it."""
    pipe = tiny_pipe()
    pipe.save_pretrained(folder, **options)
    return pipe


def hub_snapshot(cache, monkeypatch):
    """Create a hub cache with the model "someone/tiny"; returns the folder for its files."""
    folder = cache / "models--someone--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return folder / "snapshots" / "abc"


@pytest.mark.parametrize("options", [{"variant": "fp16"}, {"variant": "fp16", "max_shard_size": "300KB"}])
def test_a_folder_with_one_variant_is_loaded_with_a_warning(options, tmp_path):
    pipe = save_tiny_pipe(tmp_path / "base", **options)
    with pytest.warns(UserWarning, match=r"base contains weights of variant fp16 only, for unet, .*vae"):
        loaded = load_base(str(tmp_path / "base"), "cpu")
    assert torch.equal(everything(loaded), everything(pipe))


def test_a_variant_of_one_component(base_folder, tmp_path):
    folder = shutil.copytree(base_folder, tmp_path / "base")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.warns(UserWarning, match="variant fp16 only, for vae"):
        assert load_base(str(folder), "cpu").base_name == "base"


def test_a_hub_cache_with_one_variant(tmp_path, monkeypatch):
    save_tiny_pipe(hub_snapshot(tmp_path, monkeypatch), variant="fp16")
    with pytest.warns(UserWarning, match=r"someone/tiny contains weights of variant fp16 only"):
        assert load_base("someone/tiny", "cpu").base_name == "someone/tiny"


def test_a_run_reports_the_variant_in_one_notice(tmp_path):
    save_tiny_pipe(tmp_path / "base", variant="fp16")
    config = configs.parse({"name": "Rex", "photos": ["."], "class_noun": "dog", "base": str(tmp_path / "base")})
    events = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.load_base(config, "cpu", PhaseTimer(True, [events.append]))
    assert ["variant fp16 only" in event.message for event in events] == [True]


def test_shards_are_loaded_and_a_missing_one_is_reported(tmp_path):
    pipe = save_tiny_pipe(tmp_path / "base", max_shard_size="300KB")
    assert torch.equal(everything(load_base(str(tmp_path / "base"), "cpu")), everything(pipe))
    shard = sorted((tmp_path / "base" / "unet").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(BaseModelError, match=rf"unet/{shard.name} is missing; copy the model again") as error:
        load_base(str(tmp_path / "base"), "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["[1]", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}', "{"])
def test_a_damaged_shard_index_is_reported(damage, base_folder, tmp_path):
    folder = shutil.copytree(base_folder, tmp_path / "base")
    (folder / "unet" / "x.safetensors.index.json").write_text(damage)
    with pytest.raises(BaseModelError, match=r"x\.safetensors\.index\.json is damaged; copy the model again"):
        load_base(str(folder), "cpu")


@pytest.mark.parametrize("cached", [False, True], ids=["folder", "cache"])
def test_pickled_weights_give_an_error_of_one_line(cached, tmp_path, monkeypatch):
    folder, source = tmp_path / "base", str(tmp_path / "base")
    if cached:
        folder, source = hub_snapshot(tmp_path, monkeypatch), "someone/tiny"
    save_tiny_pipe(folder, safe_serialization=False)
    with pytest.raises(BaseModelError, match=rf"{source} contains unet, vae as pickles .*docs/bases.md says") as error:
        load_base(source, "cpu")
    assert "\n" not in str(error.value)
