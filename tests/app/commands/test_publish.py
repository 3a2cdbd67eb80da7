"""hra-diffusion publish: the folder with its card, and the upload to a local stand-in for the hub."""

import hashlib
import json
import shutil

import pytest
import yaml
from conftest import tiny_pipe, weights
from fake_hub import online, run_python
from writable_hub import writable_hub

from app.cli import main
from hra_diffusion import interop, pipeline
from training import config as configs


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A working folder whose outputs hold a trained adapter, Rex."""
    shutil.copytree(trained, tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def publish(base_folder, *more):
    return ["publish", "Rex", "--repo", "me/Rex", "--base", str(base_folder), "--license", "openrail++", *more]


def test_a_dry_run_writes_the_folder_and_uploads_nothing(here, base_folder, capsys):
    assert main(publish(base_folder, "--dry-run", "--json")) == 0
    made = json.loads(capsys.readouterr().out)
    folder = here / made["folder"]
    assert made["address"] == "" and sorted(made["files"]) == [
        "README.md", "Rex.safetensors", "pytorch_lora_weights.safetensors", "samples/00.png", "training.yaml"
    ]  # fmt: skip
    assert (folder / "Rex.safetensors").read_bytes() == (here / "outputs/Rex/Rex.safetensors").read_bytes()
    card = (folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "openrail++" and head["instance_prompt"] == "sks dog" and "hra" in head["tags"]
    assert head["widget"] == [{"text": "a photo of a sks dog", "output": {"url": "samples/00.png"}}]
    for name in ("Rex.safetensors", "pytorch_lora_weights.safetensors"):
        assert f"| `{name}` | `{hashlib.sha256((folder / name).read_bytes()).hexdigest()}` |" in card
    assert "hra-diffusion train --config training.yaml --photos photos/" in card and "**sks dog**" in card
    assert "![sample](samples/00.png)" in card and "The photos are not published" in card
    assert "{{" not in card and str(here) not in card + (folder / "training.yaml").read_text(), (
        "no path of this machine"
    )
    assert configs.read(folder / "training.yaml").steps == 6
    assert main(publish(base_folder, "--dry-run")) == 1 and "exists already" in capsys.readouterr().err


def test_the_plain_lora_is_the_same_adapter(here, base_folder):
    assert main(publish(base_folder, "--dry-run", "--quiet")) == 0
    folder = here / "outputs" / "publish" / "Rex"
    imported, _ = interop.import_adapter(tiny_pipe(), folder / "pytorch_lora_weights.safetensors", here, "Again")
    pipe = tiny_pipe()
    own, again = (pipeline.load(pipe, file).name for file in (folder / "Rex.safetensors", imported))
    weight = {}
    for name in (own, again):
        pipeline.activate(pipe, {name: 1.0})
        pipeline.merge(pipe)
        weight[name] = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.detach().clone()
        pipeline.unmerge(pipe)
    assert (weight[own] - weight[again]).abs().max() < 1e-5 and weights(folder / "Rex.safetensors").abs().max() > 0


def test_photos_are_published_only_if_asked(here, base_folder, capsys):
    assert main(publish(base_folder, "--dry-run", "--with-photos", "--json")) == 0
    made = json.loads(capsys.readouterr().out)
    assert [file for file in made["files"] if file.startswith("photos/")] == [f"photos/0{n}.png" for n in range(3)]
    shutil.rmtree(here / "outputs/Rex/photos")
    assert main(publish(base_folder, "--dry-run", "--with-photos", "--output", "other")) == 1
    assert "has kept no photos" in capsys.readouterr().err and not (here / "other").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [(["--repo", "Rex"], "'Rex' is not a hub id; expected owner/name"), (["--license", ""], "the licence of ")],
)
def test_what_is_missing_is_named_before_anything_is_written(here, base_folder, capsys, changes, said):
    assert main([*publish(base_folder, "--dry-run"), *changes]) == 1
    assert said in capsys.readouterr().err and not (here / "outputs" / "publish").exists()


def test_an_adapter_is_uploaded_with_its_card(here, base_folder):
    script = f"""
import contextlib, io, json
from app.cli import main
command = {publish(base_folder, "--quiet")!r}
code, error = main([*command, "--output", "one", "--private"]), io.StringIO()
import huggingface_hub
huggingface_hub.constants.HF_TOKEN_PATH = "/nowhere"
import os
os.environ["HF_TOKEN"] = "wrong"
with contextlib.redirect_stderr(error):
    refused = main([*command, "--output", "two"])
print(json.dumps([code, refused, error.getvalue()]))
"""
    with writable_hub("secret") as (endpoint, files, created):
        environment = online(endpoint, here / "hub") | {"HF_TOKEN": "secret"}
        code, refused, error = run_python(f"import os; os.chdir({str(here)!r})\n{script}", environment)
    assert code == 0 and created[0]["organization"] == "me" and created[0].get("visibility") == "private"
    assert files["me/Rex/Rex.safetensors"] == (here / "outputs/Rex/Rex.safetensors").read_bytes()
    assert files["me/Rex/README.md"].startswith(b"---") and not any("photos/" in name for name in files)
    assert refused == 1 and "log in with a token that can write: hf auth login" in error
