"""The flags of ``hra-diffusion train``, and what it says about files that can't be used."""

import argparse
import json
import sys
from pathlib import Path

import pytest
from conftest import save_photos, weights
from PIL import Image
from safetensors.torch import load_file

from app.cli import main
from app.commands import train as command
from training.config import RENAMED
from training.runs.run_folder import Run

NEEDED = ["--name", "Rex", "--photos", "a.jpg", "--class-noun", "dog"]


@pytest.mark.parametrize(
    ("old", "value", "field", "parsed"),
    [
        ("--fit", "8GB", "memory_limit", "8GB"),
        ("--noise-power", "0.8", "timestep_bias", 0.8),
        ("--draw-batch", "4", "sample_batch_size", 4),
        ("--schedule", "linear", "lr_scheduler", "linear"),
        ("--warmup-steps", "2", "lr_warmup_steps", 2),
        ("--prior-weight", "0.5", "prior_loss_weight", 0.5),
        ("--class-images", "3", "num_class_images", 3),
        ("--max-gradient-norm", "0.7", "max_grad_norm", 0.7),
        ("--gradient-accumulation", "2", "gradient_accumulation_steps", 2),
        ("--text-encoder-rate", "0.5", "text_encoder_lr_scale", 0.5),
    ],
)
def test_a_renamed_flag_still_works_and_names_its_successor(old, value, field, parsed, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    config = command.read_config(parser.parse_args([*NEEDED, old, value]))
    assert getattr(config, field) == parsed
    new = "--" + field.replace("_", "-")
    assert RENAMED[old.removeprefix("--").replace("-", "_")] == field
    assert capsys.readouterr().err == f"{old} is now {new}\n"
    assert f"{new} " in parser.format_help() and f"{old} " not in parser.format_help()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with two photos, and an empty folder."""
    for name in ("photos", "empty"):
        (tmp_path / name).mkdir()
    save_photos(tmp_path / "photos", 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_command(base, name, *more):
    few = ["--steps", "2", "--resolution", "64", "--prior-loss-weight", "0", "--sample-every", "0", "--quiet"]
    return ["train", "--name", name, "--base", str(base), "--device", "cpu", *few, *more]


ONE = ["--photos", "photos", "--class-noun", "dog"]
CONCEPTS = """concepts:
  - {photos: photos, class_noun: dog, trigger: sks}
  - {photos: empty, class_noun: cat, trigger: qwe}
"""
UNUSABLE = {
    "mask of another size": (
        lambda: Image.new("L", (50, 50), 255).save("photos/0.mask.png"), ONE,
        "0.mask.png: the mask has 50×50 pixels, but the upright photo has 256×192. Save the mask at the size of the",
    ),
    "empty caption": (
        lambda: Path("photos/0.txt").touch(), ONE, "0.txt: the caption is empty. Write one, or delete the file."
    ),
    "concept without photos": (
        lambda: Path("concepts.yaml").write_text(CONCEPTS), ["--concepts", "concepts.yaml"],
        "empty: no photos in this folder. Put JPEG, PNG, WebP or HEIC files directly into it.",
    ),
    "unknown optimizer": (lambda: None, [*ONE, "--optimizer", "adam"], "optimizer: "),
    "no photo of this name": (
        lambda: None, [*ONE, "--validation", "9.jpg"], "--validation holds out a photo, which needs at least 4 of them"
    ),
    "package missing": (
        lambda: None, [*ONE, "--optimizer", "prodigy"],
        "--optimizer prodigy needs prodigyopt: pip install 'hra-diffusion[optimizers]'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_can_not_be_used_is_named_before_a_run_begins(here, base_folder, capsys, monkeypatch, kind):
    prepare, flags, message = UNUSABLE[kind]
    prepare()
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    for more in ([], ["--dry-run"]):
        assert main(train_command(base_folder, "Rex", *flags, *more)) == 1
        assert message in capsys.readouterr().err and not (here / "outputs" / "Rex").exists()


def test_a_run_goes_on_starts_another_and_is_exported_with_its_embedding(here, base_folder, capsys):
    first = train_command(base_folder, "Rex", *ONE, "--checkpoint-every", "1", "--keep-states", "3", "--train-trigger")
    assert main(first) == 0
    assert main(["train", "--resume", "--name", "Rex", "--steps", "3", "--quiet"]) == 0
    run = Run(here / "outputs" / "Rex")
    assert run.state.step == 3 and run.config.keep_states == 3
    assert main(train_command(base_folder, "Max", *ONE, "--init-adapter", "Rex", "--learning-rate", "1e-9")) == 0
    assert weights(here / "outputs/Max/Max.safetensors").allclose(weights(run.adapter), atol=1e-6)
    assert main(["runs", "--drop-states", "Rex", "--quiet"]) == 0 and not run.states()
    export = ["export", "Rex", "--format", "kohya", "--base", str(base_folder), "--json"]
    capsys.readouterr()
    assert main([*export, "--output", "beside.safetensors"]) == 0
    assert json.loads(capsys.readouterr().out)["embeddings"] == ["rex-sks.safetensors"]
    assert main([*export, "--output", "bundle.safetensors", "--bundle-embeddings"]) == 0
    assert "bundle_emb.rex-sks.emb_params" in load_file("bundle.safetensors")
