"""Base models on the hub and in its cache, with huggingface_hub and a local server in place of the hub."""

import shutil

import pytest
from fake_hub import fake_hub, online, run_python
from flow_pipes import tiny_sd3_pipe

from hra_diffusion.errors import BaseModelError
from hra_diffusion.hub import OfflineError
from hra_diffusion.models import hub

SD1 = [
    "README.md", "model_index.json", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt", "feature_extractor/config.json",
    "safety_checker/config.json", "safety_checker/model.safetensors", "scheduler/scheduler_config.json",
    "text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin", "tokenizer/vocab.json", "tokenizer/merges.txt", "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors", "unet/code.py", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin",
]  # fmt: skip
CONFIGURATIONS = ["model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
                  "tokenizer/merges.txt", "tokenizer/vocab.json", "unet/config.json", "vae/config.json"]  # fmt: skip


def test_files_of_the_default_variant():
    assert hub.required_files(SD1) == [
        *CONFIGURATIONS,
        "text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip


def test_files_of_the_fp16_variant():
    assert hub.required_files(SD1, "fp16") == [
        *CONFIGURATIONS,
        "text_encoder/model.fp16.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip


def test_files_of_sharded_weights():
    shards = [f"unet/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    assert {*shards, index} <= set(hub.required_files([*shards, index, "model_index.json"]))


DOWNLOAD = """
import json
from hra_diffusion.errors import UserError
from hra_diffusion.models import hub
from hra_diffusion.models.loading import load_base

class Cancelled(UserError): pass

def cancel(done):
    if done > 100_000:
        raise Cancelled("cancelled")

def refused(name):
    try:
        hub.find_base(name)
    except UserError as error:
        return str(error)

base = hub.find_base("tester/tiny-sd")
try:
    hub.download(base, cancel)
except Cancelled:
    cancelled = hub.cached_bases()
progress = []
hub.download(base, progress.append)
print(json.dumps({
    "license": base.license, "size": base.size, "files": list(base.files), "cancelled": cancelled,
    "progress": progress, "cached": [vars(cached) for cached in hub.cached_bases()],
    "loads": type(load_base("tester/tiny-sd")).__name__,
    "missing": refused("tester/none"), "malformed": refused("a/b/c"),
}))
"""


@pytest.fixture
def published(base_folder, tmp_path):
    """A tiny model with other files, as published on the hub."""
    folder = shutil.copytree(base_folder, tmp_path / "published")
    (folder / "unet" / "code.py").write_text("raise SystemExit('ran')")
    (folder / "checkpoint.ckpt").write_bytes(b"pickled")
    return folder


def test_finding_downloading_listing_and_loading(published, tmp_path):
    with fake_hub("tester/tiny-sd", published) as endpoint:
        found = run_python(DOWNLOAD, online(endpoint, tmp_path / "home"))
    assert found["license"] == "openrail" and found["loads"] == "StableDiffusionPipeline"
    assert found["size"] == sum((published / file).stat().st_size for file in found["files"])
    assert not [file for file in found["files"] if file.endswith((".py", ".ckpt", ".bin"))]
    assert found["cancelled"] == [], "an incomplete model is not listed"
    assert found["progress"] == sorted(found["progress"]) and found["progress"][-1] == found["size"]
    assert [base["name"] for base in found["cached"]] == ["tester/tiny-sd"]
    assert "no model 'tester/none'" in found["missing"] and "not a hub id" in found["malformed"]


def test_the_bases_command(published, tmp_path):
    def bases(*flags):
        return run_python(f"from app.cli import main; main(['bases', '--json', *{flags!r}])", environment)

    with fake_hub("tester/tiny-sd", published) as endpoint:
        environment = online(endpoint, tmp_path / "home")
        assert bases("--download", "tester/tiny-sd")["license"] == "openrail"
    assert bases() == {"bases": ["toybox", "tester/tiny-sd"]}


def test_without_a_connection():
    with pytest.raises(OfflineError, match="can't be reached"):  # the tests run with HF_HUB_OFFLINE
        hub.find_base("tester/tiny-sd")
    advice = {title: text for title, text, _ in hub.offline_advice()}
    assert "vocab.json and merges.txt" in advice["One file"]
    assert "model_index.json" in advice["A diffusers folder"]
    assert "models--stable-diffusion-v1-5--stable-diffusion-v1-5" in advice["Another computer's cache"]


@pytest.mark.parametrize(
    ("files", "pipeline", "message"),
    [
        (["model.safetensors"], None, "not a diffusers model"),
        (["model_index.json"], "KolorsPipeline", "is a KolorsPipeline; only StableDiffusionPipeline or"),
        (["model_index.json"], "FluxPipeline", "is a FluxPipeline, which can't be used: .*; use black-forest-labs/"),
        (
            ["model_index.json", "unet/diffusion_pytorch_model.bin"],
            "StableDiffusionPipeline",
            "no .safetensors weights",
        ),
    ],
)
def test_unsupported_models_are_refused_before_the_download(files, pipeline, message):
    with pytest.raises(BaseModelError, match=message):
        hub._require_usable("a/b", files, pipeline)


LOAD = """
import json
from hra_diffusion.errors import UserError
from hra_diffusion.models import hub
from hra_diffusion.models.loading import load_base

try:
    load_base("tester/tiny-sd3")
except UserError as error:
    print(json.dumps(str(error)))
else:
    hub.download(hub.find_base("tester/tiny-sd3"))
    loaded = type(load_base("tester/tiny-sd3")).__name__
    print(json.dumps([loaded, [base.name for base in hub.cached_bases()]]))
"""


def test_a_gated_base_model_without_an_optional_text_encoder(tmp_path):
    """As Stable Diffusion 3.5's, whose licence must be accepted."""
    tiny_sd3_pipe(t5=False).save_pretrained(tmp_path / "published")
    with fake_hub("tester/tiny-sd3", tmp_path / "published", gated=True) as endpoint:
        environment = online(endpoint, tmp_path / "home") | {"HF_HUB_DISABLE_XET": "1"}  # it knows plain downloads only
        refused = run_python(LOAD, environment)
        found = run_python(LOAD.replace("    load_base", "    pass  #", 1), environment | {"HF_TOKEN": "secret"})
    assert "the licence of tester/tiny-sd3 must be accepted first: open https://hugging" in refused
    assert found == ["StableDiffusion3Pipeline", ["tester/tiny-sd3"]]


SHAPES = """
import json, os, warnings
from hra_diffusion.models import hub, meta

def sizes():
    meta._downloaded.cache_clear()
    return meta.architecture("tester/stable-diffusion-3-tiny").denoiser["num_layers"]

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assumed = sizes()
os.environ["HF_TOKEN"] = "secret"
print(json.dumps([[str(warning.message) for warning in caught], assumed, sizes(), hub.cached_bases()]))
"""


def test_memory_is_planned_with_the_sizes_of_the_base_before_it_is_downloaded(tmp_path):
    """Not with those of the released model of its family, unless the hub refuses its configurations."""
    tiny_sd3_pipe().save_pretrained(tmp_path / "published")
    with fake_hub("tester/stable-diffusion-3-tiny", tmp_path / "published", gated=True) as endpoint:
        environment = online(endpoint, tmp_path / "home") | {"HF_HUB_DISABLE_XET": "1"}
        notes, assumed, found, complete = run_python(SHAPES, environment)
    assert any("sizes of Stable Diffusion 3.5 medium: the licence of tester/" in note for note in notes)
    assert (assumed, found, complete) == (24, 2, [])
    assert not list((tmp_path / "home").rglob("*.safetensors"))
