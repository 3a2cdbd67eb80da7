"""The command line, run in this process through its entry point."""

import argparse
import contextlib
import errno
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, save_photos, tiny_pipe
from flow_pipes import tiny_flux2_pipe
from PIL import Image
from safetensors.torch import load_file, save_file

from app.cli import COMMANDS, main
from app.cli import run as run_command
from app.commands import common
from app.commands import export as export_cli
from app.commands import train as train_cli
from app.commands.common import parse_strength
from hra_diffusion import interop, pipeline
from hra_diffusion.adapters import attachment, registry
from training import config as configs
from training.runs.events import Notice
from training.runs.listeners import print_json


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("photos"), 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, photos, base_folder):
    """An output folder with two adapters, trained by the command line."""
    output = tmp_path_factory.mktemp("work") / "outputs"  # its parent is searched, too
    for method in ("lora", "hra"):
        assert main(train_command(photos, base_folder, output, f"rex-{method}", "--method", method)) == 0
    return output


def train_command(photos, base, output, name, *more):
    few = [
        "--steps",
        "2",
        "--num-class-images",
        "1",
        "--sample-every",
        "0",
        "--sample-prompts",
        "a {subject}",
        "--quiet",
    ]
    return ["train", "--photos", str(photos), "--class-noun", "dog", "--name", name, "--base", str(base),
            "--resolution", "64", "--output", str(output), "--device", "cpu", *few, *more]  # fmt: skip


def save_adapter(path, name):
    pipe = tiny_pipe()
    attachment.attach(pipe.unet, "lora", {"rank": 2}, name=name)
    pipeline.save(pipe, path, name)


def run_json(capsys, *command) -> dict:
    """Run a command with --json and parse its output."""
    assert main([*map(str, command), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_help_needs_no_torch():
    """--help is fast because it imports nothing slow."""
    code = (
        "import sys; from app.cli import main\ntry: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip().endswith("False") and all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0 and f"hra-diffusion {command}" in capsys.readouterr().out


def test_methods(capsys):
    listed = run_json(capsys, "methods")["methods"]
    assert [method["name"] for method in listed] == registry.method_names()
    assert main(["methods"]) == 0 and "--orthogonality" in capsys.readouterr().out


def test_every_option_of_every_method_is_a_flag(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    for method in registry.method_names():
        for option in registry.get_method(method).config.model_fields:
            assert f"--{option.replace('_', '-')}" in text


def test_train_prints_its_events_as_json(photos, base_folder, tmp_path, capsys):
    command = train_command(photos, base_folder, tmp_path, "Rex")
    command.remove("--quiet")
    assert main([*command, "--json", "--rank", "2", "--orthogonality", "inf"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.index("captions") < kinds.index("step")
    assert events[-1]["event"] == "finished" and Path(events[-1]["adapter"]).is_file()
    config = (tmp_path / "Rex" / "config.yaml").read_text()
    assert "rank: 2" in config and "orthogonality: .inf" in config


def test_flux2_trains_and_draws(photos, tmp_path):
    """On a base in 4 bits, and a picture that is not square on the full one."""
    tiny_flux2_pipe().save_pretrained(tmp_path / "base")
    options = ["--base-weights", "nf4", "--gradient-checkpointing", "--prior-loss-weight", "0"]
    assert main(train_command(photos, tmp_path / "base", tmp_path, "Rex", *options)) == 0
    assert main(["generate", "--prompt", "a {subject}", "--base", str(tmp_path / "base"), "--device", "cpu", "--steps",
                 "2", "--adapter", str(tmp_path / "Rex" / "Rex.safetensors"), "--width", "32", "--height", "16",
                 "--output", str(tmp_path / "drawn")]) == 0  # fmt: skip
    (picture,) = (tmp_path / "drawn").glob("*.png")
    assert Image.open(picture).size == (32, 16)


@pytest.mark.filterwarnings("always::hra_diffusion.errors.Note")
def test_every_command_accepts_the_noise_process(photos, base_folder, tmp_path, capsys):
    process = ["--prediction-type", "v_prediction", "--rescale-zero-snr"]
    assert main(train_command(photos, base_folder, tmp_path, "Rex", *process)) == 0
    shown = run_json(capsys, "show", tmp_path / "Rex" / "Rex.safetensors")
    assert (shown["prediction_type"], shown["zero_snr"]) == ("v_prediction", True)
    adapter = str(tmp_path / "Rex" / "Rex.safetensors")
    draw = ["generate", "--prompt", "a dog", "--base", str(base_folder), "--adapter", adapter, "--steps", "1",
            "--device", "cpu", "--output", str(tmp_path)]  # fmt: skip
    assert main([*draw, *process]) == 0 and "note:" not in capsys.readouterr().err
    assert main(draw) == 0
    assert "zero terminal SNR; this one predicts epsilon" in capsys.readouterr().err
    assert main([*draw, "--rescale-zero-snr"]) == 1
    assert "add --prediction-type v_prediction" in capsys.readouterr().err
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert {"--prediction-type", "--no-rescale-zero-snr"} <= set(re.findall(r"--[\w-]+", capsys.readouterr().out))


def test_a_dry_run_predicts_memory_and_trains_nothing(photos, base_folder, tmp_path, capsys):
    command = [part for part in train_command(photos, base_folder, tmp_path / "out", "Rex") if part != "--quiet"]
    command += ["--caption", "a dog sitting"]
    assert main([*command, "--dry-run"]) == 0
    output = capsys.readouterr()
    assert re.search(r"about 0\.\d GB of memory on cpu, most in '\w+' \(predicted\)", output.err)
    assert re.search(r"0\.\d GB  training", output.out) and not (tmp_path / "out").exists()
    assert 'Rex: caption of every photo: "sks dog, a dog sitting"' in output.err
    assert "--no-add-trigger" in output.err
    assert main([*command, "--dry-run", "--json", "--no-add-trigger"]) == 0
    captions, plan = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert captions["event"] == "captions" and captions["added"] == []
    assert {Path(path).name: caption for path, caption in captions["captions"].items()} == {
        "0.jpg": "a dog sitting",
        "1.jpg": "a dog sitting",
    }
    assert plan["event"] == "plan" and plan["memory"] == max(plan["phases"].values()) and plan["seconds"] is None
    assert main([*command, "--memory-limit", "0.1GB", "--json"]) == 1 and not (tmp_path / "out").exists()
    assert "does not fit in 0.1GB" in capsys.readouterr().err


def test_generate_by_name_and_by_file(trained, base_folder, tmp_path, capsys):
    file = trained / "rex-hra" / "rex-hra.safetensors"
    common = ["--prompt", "a {subject} in the snow", "--seed", "7", "--base", base_folder, "--steps", "3"]
    named = run_json(capsys, "generate", "--adapter", "rex-hra:0.5", *common, "--output", trained / "pictures")
    filed = run_json(capsys, "generate", "--adapter", f"{file}:0.5", *common, "--output", tmp_path)
    (one,), (two,) = named["pictures"], filed["pictures"]
    assert one["prompt"] == "a sks dog in the snow" and one["adapters"] == {"rex-hra": 0.5} and one["seed"] == 7
    assert Path(one["picture"]).parent == trained / "pictures"
    assert Image.open(one["picture"]).tobytes() == Image.open(two["picture"]).tobytes()


def test_words_encoded_separately_are_named(base_folder, tmp_path, capsys):
    prompt = "a red dog and a blue cat in the deep snow"  # a token per letter, 22 of them at once
    command = ["generate", "--prompt", prompt, "--base", str(base_folder), "--steps", "1", "--output", str(tmp_path)]
    assert main(command) == 0
    assert "“the deep snow”" in capsys.readouterr().err
    (made,) = run_json(capsys, "show", next(tmp_path.glob("*.png"))).get("notes", ())
    assert "“the deep snow”" in made
    assert main([*command, "--quiet"]) == 0 and "snow" not in capsys.readouterr().err


def test_generating_again_overwrites_nothing(base_folder, tmp_path, capsys):
    for _ in range(2):
        run_json(capsys, "generate", "--prompt", "a dog", "--base", base_folder, "--steps", "2", "--output", tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_after_a_deletion_no_picture_is_overwritten(base_folder, tmp_path, capsys):
    command = ["generate", "--prompt", "a dog", "--base", base_folder, "--steps", "2", "--output", tmp_path]
    run_json(capsys, *command, "--count", "2")
    sorted(tmp_path.glob("*.png"))[0].unlink()
    run_json(capsys, *command)
    assert [path.name[:4] for path in sorted(tmp_path.glob("*.png"))] == ["0001", "0002"]


def test_other_numbered_files_in_the_output_folder(base_folder, tmp_path, capsys):
    (tmp_path / "2024.05.01-holiday.png").touch()
    run_json(capsys, "generate", "--prompt", "a dog", "--base", base_folder, "--steps", "2", "--output", tmp_path)
    assert len(list(tmp_path.glob("0000-*.png"))) == 1


@pytest.mark.parametrize("flags", ["--batch-size 0", "--count 0", "--seed -1", "--adapter rex-hra:nan", "--steps 0"])
def test_invalid_numbers(flags, trained, base_folder, capsys):
    command = ["generate", "--prompt", "a dog", "--base", str(base_folder), "--output", str(trained / "pictures")]
    assert main([*command, *flags.split()]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_compare(trained, base_folder, tmp_path, capsys):
    long = "a very long prompt about a {subject} in a place, by "
    result = run_json(
        capsys, "compare", "--adapter", "rex-lora", "rex-hra", "rex-hra:0.5", "--prompt", long + "day", long + "night",
        "--seed", "1", "2", "--base", base_folder, "--steps", "2", "--output", trained / "side-by-side",
    )  # fmt: skip
    facts = json.loads(Path(result["results"]).read_text())
    assert [column["label"] for column in facts["variants"]] == ["base", "rex-lora", "rex-hra", "rex-hra × 0.5"]
    assert (
        facts["variants"][1]["costs"].keys() == {"parameters", "megabytes", "seconds", "memory"}
        and facts["variants"][0]["costs"] == {}
    )
    assert len({cell["image"] for cell in facts["samples"]}) == 16, "no picture overwrites another"
    assert all((trained / "side-by-side" / cell["image"]).is_file() for cell in facts["samples"])
    with Image.open(result["grid"]) as grid:
        assert grid.width > grid.height / 2
    assert "about a dog in" in facts["samples"][0]["prompt"], "the base model gets the class noun"


def test_grid(trained, base_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(trained.parent)
    run = ["grid", "--adapter", "rex-hra", "--base", base_folder, "--steps", "2"]
    made = run_json(capsys, *run, "--x", "checkpoint", "2", "last", "base", "rex-lora", "--y", "strength", "0.5", "1")
    assert made["pictures"] == 8 and made["grid"] == "outputs/grids/0001.png"
    shown = run_json(capsys, "show", made["grid"])
    assert shown["x"]["values"] == ["2", "last", "base", "rex-lora"] and shown["prompt"] == "a photo of a sks dog"
    row = run_json(capsys, *run, "--x", "guidance", "1", "7", "--output", tmp_path / "row.png")
    assert row["pictures"] == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--x steps ten", "the axis steps can't be 'ten'"),
        ("--x checkpoint 7 --adapter rex-hra", "has no checkpoint of step 7; it has those of the steps 2"),
        ("--x checkpoint 7", "the checkpoint 7 needs an adapter"),
        ("--x strength 1 2", "the axis strength needs an adapter"),
        ("--x seed 1 --y seed 2", "both axes are seed"),
        ("--x seed 1 --output grid.jpg", "not the name of a new PNG file"),
        ("--x", "expected at least one argument"),
    ],
)
def test_invalid_grids_end_in_a_short_error(line, said, trained, base_folder, monkeypatch, capsys):
    monkeypatch.chdir(trained.parent)
    with contextlib.suppress(SystemExit):
        assert main(["grid", *line.split(), "--base", str(base_folder)]) == 1
    assert said in capsys.readouterr().err


def test_a_comparison_is_not_overwritten(trained, base_folder, tmp_path, capsys):
    (tmp_path / "results.json").touch()
    command = ["compare", "--adapter", "rex-lora", "--prompt", "a {subject}", "--base", base_folder]
    assert main([*map(str, command), "--output", str(tmp_path)]) == 1
    assert "already holds a comparison" in capsys.readouterr().err


def test_the_default_base_is_toybox(photos, tmp_path):
    command = ["train", "--photos", str(photos), "--class-noun", "dog", "--name", "Rex", "--output", str(tmp_path)]
    parser = argparse.ArgumentParser()
    train_cli.add_arguments(parser)
    assert train_cli.read_config(parser.parse_args(command[1:])).base == "toybox"


@pytest.mark.parametrize(
    "line", ["photos: my-dog", "photos: 5", "options:\n- 5", "base: 5"], ids=["word", "number", "options", "base"]
)
def test_settings_of_the_wrong_type(line, tmp_path, capsys):
    (tmp_path / "rex.yaml").write_text(f"name: Rex\nclass_noun: dog\n{line}\n")
    assert main(["train", "--config", str(tmp_path / "rex.yaml"), "--rank", "4", "--output", str(tmp_path)]) == 1
    assert "must be" in capsys.readouterr().err


def test_adapters_and_show(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # without an outputs folder, which would be listed, too
    listed = run_json(capsys, "adapters", "--output", trained)["adapters"]
    assert [adapter["name"] for adapter in listed] == ["rex-hra", "rex-lora"]
    shown = run_json(capsys, "show", "rex-lora", "--output", trained)
    assert shown["method"] == "lora" and shown["trigger"] == "sks" and shown["training"]["steps"] == 2
    assert main(["show", str(trained / "rex-hra" / "samples" / "000000-0.png")]) == 0
    assert "prompt: a sks dog" in capsys.readouterr().out


def test_resume_needs_only_the_name(trained, capsys):
    assert main(["train", "--resume", "--name", "rex-hra", "--output", str(trained)]) == 0


def test_a_run_of_an_earlier_version_resumes_with_its_own_flags(trained, photos, base_folder, tmp_path):
    """Even if their defaults have changed since."""
    output = shutil.copytree(trained, tmp_path / "old")
    file = output / "rex-hra" / "config.yaml"
    saved = [line for line in file.read_text().splitlines() if line.partition(":")[0] not in configs.EARLIER_DEFAULTS]
    file.write_text("\n".join(saved).replace("flip: false", "flip: true"))
    for state in output.glob("rex-hra/checkpoints/*/training.safetensors"):
        save_file(load_file(state), state)  # without the run's identity
    command = train_command(photos, base_folder, output, "rex-hra", "--method", "hra", "--resume")
    assert main(command) == 0
    assert main([*command, "--no-flip"]) == main([*command, "--add-trigger"]) == 1


def test_size_conditioning_is_set_by_flags():
    parser = argparse.ArgumentParser()
    common.add_generation_settings(parser)
    given = common.parse_settings(
        parser.parse_args(["--original-size", "512", "384", "--crops-coords-top-left", "0", "9"])
    )
    assert (given.original_size, given.crops_coords_top_left, given.target_size) == ((512, 384), (0, 9), None)


def test_ctrl_c_keeps_the_last_step(photos, base_folder, tmp_path):
    command = train_command(photos, base_folder, tmp_path, "Rex", "--steps", "500", "--checkpoint-every", "500")
    command.remove("--quiet")
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", *command, "--json"], stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "step":
            process.send_signal(2)
            break
    rest = [json.loads(line) for line in process.stdout.read().splitlines()]
    assert process.wait(60) == 130
    stopped = rest[-1]
    assert stopped["event"] == "stopped" and (tmp_path / "Rex" / "checkpoints" / f"{stopped['step']:06d}").is_dir()


def bad_photo(tmp_path, make):
    folder = tmp_path / "photos"
    folder.mkdir()
    make(folder)
    return folder


def truncate(folder):
    Image.effect_noise((200, 200), 50).save(folder / "a.jpg")
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes()[:2000])


BAD_PHOTOS = {
    "no photos": (lambda f: None, "no photos"),
    "text named jpg": (lambda f: (f / "a.jpg").write_text("hello"), "a.jpg"),
    "truncated": (truncate, "a.jpg"),
    "bomb": (lambda f: Image.new("1", (30_000, 30_000)).save(f / "a.png"), "megapixels"),
    "tiny": (lambda f: Image.new("RGB", (16, 16)).save(f / "a.png"), "16"),
}


@pytest.mark.parametrize("case", BAD_PHOTOS)
def test_bad_photos(case, tmp_path, base_folder, capsys):
    make, message = BAD_PHOTOS[case]
    output = tmp_path / "out"
    assert main(train_command(bad_photo(tmp_path, make), base_folder, output, "Rex")) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error
    assert not output.exists(), "nothing is left behind"


BAD_FLAGS = {
    "unknown method": (["--method", "magic"], 2, "invalid choice: 'magic'"),
    "odd rank": (["--rank", "3"], 1, "rank must be even"),
    "too large rank": (["--rank", "200"], 1, "rank 200 is too large"),
    "name up": (["--name", "../x"], 1, "letters, digits"),
    "name slash": (["--name", "a/b"], 1, "letters, digits"),
    "name control": (["--name", "a\x1bb"], 1, "letters, digits"),
    "name long": (["--name", "x" * 300], 1, "300 characters"),
    "base missing": (["--base", "not-there"], 1, "no base model 'not-there'"),
    "photos missing": (["--photos", "not-there"], 1, "not-there"),
    "no device": (["--device", "mps"], 1, "no mps device is available here"),
    "half a pixel": (["--resolution", "65"], 1, "multiples of"),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags(case, photos, base_folder, tmp_path, capsys):
    flags, code, message = BAD_FLAGS[case]
    output = tmp_path / "out"
    try:
        returned = main(train_command(photos, base_folder, output, "Rex", *flags))
    except SystemExit as exit_:
        returned = exit_.code
    error = capsys.readouterr().err
    assert returned == code and message in error and "Traceback" not in error
    assert not output.exists(), "nothing is half-written"


def test_missing_flags_are_named(capsys):
    assert main(["train", "--method", "hra"]) == 1
    assert "missing settings: --photos, --class-noun, --name" in capsys.readouterr().err


@pytest.mark.parametrize(
    "make", [lambda p: p.mkdir(), lambda p: (p.mkdir(), (p / "model_index.json").write_text("{}"))]
)
def test_a_folder_without_a_base_model(make, tmp_path, capsys):
    make(tmp_path / "base")
    assert main(["generate", "--prompt", "a dog", "--base", str(tmp_path / "base"), "--output", str(tmp_path)]) == 1
    assert str(tmp_path / "base") in capsys.readouterr().err


def test_output_is_a_file(photos, base_folder, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert main(train_command(photos, base_folder, tmp_path / "out", "Rex")) == 1
    assert main(["generate", "--prompt", "a", "--base", str(base_folder), "--output", str(tmp_path / "out")]) == 1
    errors = capsys.readouterr().err
    assert errors.count("can't be a folder: a file is in its place") == 2 and (tmp_path / "out").read_text() == "mine"


def test_output_is_read_only(photos, base_folder, tmp_path, capsys):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):
        locked = Path("/sys/hra-diffusion-test")  # root may write anywhere else
    if not locked.parent.is_dir():
        pytest.skip("needs a folder that nobody may write to")
    assert main(train_command(photos, base_folder, locked / "out", "Rex")) == 1
    assert "can't be written: permission denied; choose another folder" in capsys.readouterr().err


def test_an_adapter_of_another_base(trained, tmp_path, capsys):
    from conftest import tiny_pipe

    tiny_pipe(cross_attention_dim=16).save_pretrained(tmp_path / "other")
    file = trained / "rex-hra" / "rex-hra.safetensors"
    command = ["generate", "--adapter", str(file), "--prompt", "a", "--base", str(tmp_path / "other")]
    assert main([*command, "--output", str(tmp_path / "out")]) == 1
    assert "is for another base (tiny-sd)" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_adapter(trained, base_folder, tmp_path, capsys):
    command = [
        "generate",
        "--adapter",
        "rox",
        "--prompt",
        "a",
        "--base",
        str(base_folder),
        "--output",
        str(trained / "p"),
    ]
    assert main(command) == 1
    assert "no adapter named 'rox'" in (error := capsys.readouterr().err) and "rex-hra, rex-lora" in error


def test_a_second_run_of_the_same_name(trained, photos, base_folder, capsys):
    assert main(train_command(photos, base_folder, trained, "rex-hra", "--steps", "3")) == 1
    assert "exists already; continue with --resume, or choose another --name" in capsys.readouterr().err


def test_a_full_disk(photos, base_folder, tmp_path, capsys):
    """On a file system of 600 kB, if the test may mount one."""
    small = tmp_path / "small"
    small.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if not done or done.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        command = train_command(photos, base_folder, small, "Rex", "--steps", "400", "--checkpoint-every", "1")
        assert main(command) == 1
        error = capsys.readouterr().err
        assert "the disk is full" in error and "free some space" in error
        kept = sorted((small / "Rex" / "checkpoints").glob("[0-9]*/adapter.safetensors"))
        assert kept and not list(small.rglob("*.tmp*")), "whole checkpoints stay, nothing half-written"
        from hra_diffusion.adapters.adapter_file import read_info

        assert all(read_info(path).name == "Rex" for path in kept)
    finally:
        subprocess.run(["umount", str(small)], check=False)


@pytest.mark.parametrize("format", ["kohya", "diffusers", "peft", "merged"])
def test_export_and_what_loads_it(format, trained, base_folder, tmp_path, capsys):
    adapter = trained / "rex-hra" / "rex-hra.safetensors"
    place = tmp_path / ("rex.safetensors" if format == "kohya" else "rex")
    command = ["export", adapter, "--format", format, "--output", place, "--base", base_folder]
    done = run_json(capsys, *command)
    assert Path(done["file"]).exists() and done["error"] == 0
    assert any(row["loads"] == "exactly" for row in done["loads"])
    assert main([*map(str, command)]) == 1 and "exists already" in capsys.readouterr().err


def test_several_adapters_are_fused_or_composed_and_exported_as_one(trained, base_folder, tmp_path, capsys):
    file, other = trained / "rex-hra" / "rex-hra.safetensors", tmp_path / "other.safetensors"
    shutil.copy(file, other)
    few = ["--base", base_folder, "--output"]
    command = ["generate", "--prompt", "a dog", "--steps", "1", "--fusion", "geodesic", *few, tmp_path, "--adapter"]
    (picture,) = run_json(capsys, *command, f"{file}:0.5", f"{other}:0.5")["pictures"]
    assert picture["fusion"] == "geodesic" and list(picture["adapters"].values()) == [0.5, 0.5]
    rank = run_json(capsys, "export", file, "--format", "kohya", *few, tmp_path / "one.safetensors")["rank"]
    lora = trained / "rex-lora" / "rex-lora.safetensors"
    for fusion, second in (("geodesic", other), ("compose", lora)):
        place = tmp_path / f"{fusion}.safetensors"
        several = ["export", f"{file}:0.5", f"{second}:0.5", "--format", "kohya", "--fusion", fusion, *few, place]
        done = run_json(capsys, *several)
        assert (done["form"], done["error"]) == ("LoRA", 0) and done["rank"] > rank
    command = ["export", file, lora, "--format", "kohya", "--fusion", "geodesic", *few, tmp_path / "no.safetensors"]
    assert main([*map(str, command)]) == 1
    assert "is for rotations (HOFT, HRA, SHOFT), which 'rex-lora' is not" in capsys.readouterr().err


def test_export_offers_every_format():
    assert set(export_cli.FORMATS) == set(interop.FORMATS)


def test_export_prints_which_programs_load_it(trained, base_folder, tmp_path, capsys):
    adapter = trained / "rex-hra" / "rex-hra.safetensors"
    command = ["export", f"{adapter}:0.5", "--format", "kohya", "--base", base_folder, "--lora-rank", "2"]
    assert main([*map(str, command), "--output", str(tmp_path / "rex.safetensors")]) == 0
    output = capsys.readouterr().out
    assert "LoRA of rank 2, truncated: error" in output and "diffusers: approximately, error" in output
    assert "ComfyUI: approximately, error" in output and "OneTrainer: approximately, error" in output
    assert 'In prompts the subject is "sks dog"' in output and "Exact on tiny-sd only" in output


def test_an_exported_lora_is_imported_and_compared(trained, base_folder, tmp_path, capsys):
    """Export a LoRA, import it under another name, compare it with HRA."""
    exported = tmp_path / "Some LoRA (v1.0).safetensors"
    adapter = trained / "rex-lora" / "rex-lora.safetensors"
    run_json(capsys, "export", adapter, "--format", "kohya", "--output", exported, "--base", base_folder)
    command = ["import", exported, "--base", base_folder, "--output", tmp_path]
    dry = run_json(capsys, *command, "--dry-run")
    assert dry["used"] == dry["keys"] and not list(tmp_path.glob("Some-*"))
    done = run_json(capsys, *command)
    assert done["name"] == "Some-LoRA-v1-0" and Path(done["file"]).is_file()
    use = shlex.split(done["use"])
    assert use[:4] == ["hra-diffusion", "generate", "--adapter", done["file"]] and use[-1] == "a photo of sks dog"
    assert main([*use[1:], "--steps", "1", "--output", str(tmp_path / "drawn")]) == 0, "the printed command works"
    assert main([*map(str, command)]) == 1 and "choose another --name" in capsys.readouterr().err
    result = run_json(
        capsys, "compare", "--adapter", done["file"], trained / "rex-hra" / "rex-hra.safetensors",
        "--prompt", "a {subject}", "--base", base_folder, "--steps", "2", "--output", tmp_path / "side-by-side",
    )  # fmt: skip
    cells = json.loads(Path(result["results"]).read_text())["samples"]
    assert [cell["prompt"] for cell in cells[1:]] == ["a sks dog", "a sks dog"], "the trigger is imported"


def test_import_names_skipped_keys(tmp_path, base_folder, capsys):
    import torch

    up, down = torch.ones(32, 2), torch.ones(2, 32)
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{layer}.lora_B.weight": up, f"{layer}.lora_A.weight": down, "a": torch.ones(1), "b": torch.ones(1)}
    save_file(tensors, tmp_path / "odd.safetensors")
    assert main(["import", str(tmp_path / "odd.safetensors"), "--dry-run", "--base", str(base_folder)]) == 0
    output = capsys.readouterr().out
    assert "2 of 4 keys understood: 1 LoRA; 1 layers of the unet; rank 2 (1)" in output
    assert "skipped, its name is not known: a and 1 more" in output


def test_import_normalizes_names(tmp_path, base_folder, capsys):
    """A name in decomposed Unicode, as from macOS file dialogs, equals the composed one."""
    import torch

    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{layer}.lora_B.weight": torch.ones(32, 2), f"{layer}.lora_A.weight": torch.ones(2, 32)},
              tmp_path / "odd.safetensors")  # fmt: skip
    command = ["import", str(tmp_path / "odd.safetensors"), "--base", str(base_folder), "--output", str(tmp_path)]
    assert main([*command, "--name", "e\u0301te\u0301"]) == 0
    output = capsys.readouterr().out
    assert (
        f"written to {tmp_path / 'été.safetensors'}; generate with" in output
        and (tmp_path / "été.safetensors").is_file()
    )
    assert main([*command, "--name", "été"]) == 1 and "exists already" in capsys.readouterr().err


def test_a_path_without_suffix_suggests_the_file(trained, base_folder, capsys):
    place = trained / "rex-hra" / "rex-hra"
    assert main(["generate", "--adapter", str(place), "--prompt", "a", "--base", str(base_folder)]) == 1
    assert f"there is no adapter file {place}; similar files: {place}.safetensors" in capsys.readouterr().err


def old_console(monkeypatch):
    """Replace standard output with a pipe in Western European Windows' code page, without "≥", "→", "✓" and "λ"."""
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="cp1252", write_through=True))
    return raw


@pytest.mark.parametrize("command", [["methods"], ["train", "--help"], ["--help"]])
def test_characters_outside_the_code_page_are_escaped(command, monkeypatch):
    raw = old_console(monkeypatch)
    with contextlib.suppress(SystemExit):
        assert main(command) == 0
    sys.stdout.write("a ≥ b → c ✓ λ")
    assert raw.getvalue().decode("cp1252").endswith(r"a \u2265 b \u2192 c \u2713 \u03bb")


def test_json_is_always_utf8(monkeypatch, tmp_path):
    save_adapter(tmp_path / "Ωmega.safetensors", "Ωmega")
    raw = old_console(monkeypatch)
    assert main(["show", str(tmp_path / "Ωmega.safetensors"), "--json"]) == 0
    print_json(Notice("→ ✓"))
    shown, event = map(json.loads, raw.getvalue().decode("utf-8").splitlines())
    assert shown["name"] == "Ωmega" and event["message"] == "→ ✓"


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.EINVAL, "Invalid argument")])
def test_a_closed_pipe_is_not_an_error(error, monkeypatch, tmp_path):
    """On Windows, writing to a closed pipe raises EINVAL (see subprocess.Popen.communicate)."""
    with (tmp_path / "out").open("w") as stream:

        class Pipe:
            """Standard output with a closed reader."""

            def write(self, text):
                raise error

            def fileno(self):
                return stream.fileno()

        monkeypatch.setattr("hra_diffusion.files.WINDOWS", True)
        monkeypatch.setattr("sys.stdout", Pipe())
        print_json(Notice("lost"))
        assert run_command(SimpleNamespace(run=lambda _: sys.stdout.write("x")), argparse.Namespace()) == 0
        stream.write("this goes nowhere")
    assert not (tmp_path / "out").read_text()


def test_moved_photos_can_be_given_when_resuming(trained, photos, tmp_path, capsys):
    run = shutil.copytree(trained / "rex-lora", tmp_path / "out" / "rex-lora")
    (run / "rex-lora.safetensors").unlink()
    lines = (run / "config.yaml").read_text().replace(str(photos), str(tmp_path / "gone"))
    (run / "config.yaml").write_text(lines)
    moved = shutil.copytree(photos, tmp_path / "far" / "away" / "photos")
    command = ["train", "--resume", "--name", "rex-lora", "--output", str(tmp_path / "out")]
    assert main(command) == 1
    assert "give their folder with --photos" in capsys.readouterr().err
    assert main([*command, "--photos", str(moved), "--quiet"]) == 0 and (run / "rex-lora.safetensors").is_file()


def test_strengths_after_a_drive_letter():
    assert parse_strength(r"C:\models\Rex.safetensors") == (r"C:\models\Rex.safetensors", 1.0)
    assert parse_strength(r"C:\models\Rex.safetensors:0.5") == (r"C:\models\Rex.safetensors", 0.5)
    assert parse_strength("Rex:0.5") == ("Rex", 0.5)


LONG = "x" * 5000


@pytest.mark.parametrize(
    "command",
    [
        ["show", LONG], ["show", f"{LONG}.png"], ["show", f"{LONG}.safetensors"], ["show", "a\0b"], ["show", "\ud800"],
        ["show", "\udcff.png"], ["adapters", "--output", LONG], ["adapters", "--base", LONG], ["import", LONG],
        ["import", "x.safetensors", "--name", LONG], ["export", LONG, "--format", "kohya"],
        ["generate", "--prompt", "a", "--base", LONG], ["generate", "--prompt", "a", "--output", LONG],
        ["generate", "--prompt", "a", "--output", "a\0b"], ["compare", "--adapter", LONG, "--prompt", "a"],
        ["train", "--photos", "~nosuch/x", "--class-noun", "dog", "--name", "Rex"],
        ["train", "--photos", LONG, "--class-noun", "dog", "--name", "Rex"],
        ["train", "--photos", ".", "--class-noun", LONG, "--name", "Rex"],
        ["train", "--photos", ".", "--class-noun", "dog", "--name", LONG],
        ["train", "--photos", ".", "--class-noun", "dog", "--name", "Rex", "--base", LONG],
        ["train", "--photos", ".", "--class-noun", "dog", "--name", "Rex", "--output", LONG],
        ["train", "--photos", ".", "--class-noun", "dog", "--name", "Rex", "--steps", "9" * 5000],
        ["train", "--config", LONG], ["train", "--resume", "--name", LONG], ["bases", "--download", LONG],
    ],
    ids=lambda command: "-".join(word[:12].encode("ascii", "replace").decode().replace("\0", "0") for word in command),
)  # fmt: skip
def test_odd_arguments_end_in_a_short_error(command, base_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command if "--base" in command else [*command, *uses_base(command, base_folder)]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error:") and len(error) < 1000 and "Traceback" not in error


def uses_base(command, base_folder):
    return ["--base", str(base_folder)] if command[0] in ("generate", "compare", "export", "import", "train") else []


@pytest.mark.parametrize("file", ["bool-tag", "deep-list-closed", "int-5000-digits", "laughs-in-name", "photos-int"])
def test_hostile_configurations_end_in_a_short_error(file, shared, capsys, tmp_path):
    assert (
        main(["train", "--config", str(shared / "data" / "hostile" / f"{file}.yaml"), "--output", str(tmp_path)]) == 1
    )
    assert len(capsys.readouterr().err) < 600


def test_a_configuration_may_name_a_folder_by_a_date(tmp_path):
    (tmp_path / "c.yaml").write_text("name: Rex\nclass_noun: dog\nphotos: [2026-01-01]\n")
    parser = argparse.ArgumentParser()
    train_cli.add_arguments(parser)
    config = train_cli.read_config(parser.parse_args(["--config", str(tmp_path / "c.yaml")]))
    assert [photo.name for photo in config.photos] == ["2026-01-01"]
