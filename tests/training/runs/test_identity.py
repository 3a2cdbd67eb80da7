"""What a run was started with is stored in its checkpoints: a resume does not silently train something else."""

import json
import re
import shutil

import pytest
import torch
import yaml
from conftest import weights
from safetensors.torch import load_file, save_file

from hra_diffusion.errors import Note
from training.loop import train
from training.runs.events import Notice
from training.runs.run_folder import Run, RunError


@pytest.fixture
def run(stopped_run, tmp_path):
    return Run(shutil.copytree(stopped_run[1], tmp_path / "out" / "Rex"))


def edit(run, **changes):
    file = run.folder / "config.yaml"
    values = yaml.safe_load(file.read_text())
    values["options"] |= changes.pop("options", {})
    file.write_text(yaml.safe_dump(values | changes))


def resume(run, *listeners):
    """Resume as a bare ``--resume`` does."""
    return weights(train(run.config, run.folder.parent, listeners, resume=True))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 0.001}, "learning_rate 0.01, not 0.001"),
        ({"steps": 9}, "steps 5, not 9"),
        ({"seed": 7, "flip": True}, "flip False, not True; seed 0, not 7"),
        ({"caption": "a {subject}"}, "caption a photo of a {subject}, not a {subject}"),
        ({"batch_size": 4}, "batch_size 2, not 4"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps 1, not 2"),
        ({"min_snr_gamma": 5.0}, "min_snr_gamma 0.0, not 5.0"),
        ({"resolution": 128}, "resolution 64, not 128"),
        ({"exclude": ".*attn2.*"}, "exclude unset, not .*attn2.*"),
        ({"ranks": {".*attn2.*": 2}}, "ranks..*attn2.* unset, not 2"),
        ({"options": {"rank": 3}}, "options.rank 8, not 3"),
        ({"method": "lora"}, "method hra, not lora"),
        ({"method": "lora", "options": {"alpha": 8}}, "method hra, not lora; options.alpha unset, not 8"),
        ({"steps": -1}, "steps 5, not -1"),
    ],
)
def test_an_edit_that_decides_the_weights_is_named_with_both_values(run, changes, named):
    edit(run, **changes)
    with pytest.raises(RunError, match=re.escape(f"was started with other values: {named}; resume with the same")):
        resume(run)


def test_edits_that_decide_no_weights_are_used(run, stopped_run):
    edit(run, checkpoint_every=1, sample_prompts=["a {subject}"], preset="best")
    assert torch.equal(resume(run), stopped_run[2])
    assert [folder.name for folder in run.checkpoints()] == ["000002", "000003", "000004", "000005"]
    assert run.config.checkpoint_every == 1 and list(run.samples()) == [5]


@pytest.mark.parametrize("content", ["", "name: [", "\0\0\0", None])
def test_a_damaged_configuration_is_replaced_by_that_of_the_checkpoint(run, stopped_run, content):
    file = run.folder / "config.yaml"
    file.unlink() if content is None else file.write_text(content)
    with pytest.warns(Note, match=r"config\.yaml .*those in the newest checkpoint are used"):
        config = run.config
    assert config.model_copy(update={"photos": stopped_run[0].photos}) == stopped_run[0]
    if content is None:
        assert torch.equal(resume(run), stopped_run[2])


def test_an_edit_of_the_photos_record_does_not_change_the_crops(run, stopped_run):
    file = run.folder / "photos.json"
    records = json.loads(file.read_text())
    file.write_text(json.dumps([record | {"crop": [0, 0, 64, 64]} for record in records]))
    assert torch.equal(resume(run), stopped_run[2])
    assert json.loads(file.read_text()) == records


def flip_bit(file):
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def lose_metadata(file):
    save_file({"x": torch.ones(2)}, file)


@pytest.mark.parametrize("file", ["training", "adapter"])
@pytest.mark.parametrize("harm", [flip_bit, lose_metadata], ids=["flipped bit", "other tensors"])
def test_a_checkpoint_damaged_in_any_file_falls_back_to_the_one_before(run, stopped_run, file, harm):
    harm(run.checkpoint_folder(3) / f"{file}.safetensors")
    events = []
    assert torch.equal(resume(run, events.append), stopped_run[2])
    (notice,) = (event.message for event in events if isinstance(event, Notice) and "can't be read" in event.message)
    assert "000003 can't be read (" in notice and notice.endswith("using the previous one")


def test_runs_of_earlier_versions_without_identity_resume(run, stopped_run):
    for file in run.folder.glob("checkpoints/*/training.safetensors"):
        save_file(load_file(file), file)
    assert run.identity is None and run.started_with == run.config
    assert torch.equal(resume(run), stopped_run[2])


@pytest.mark.parametrize("changes", [{"options": {"rank": 4}}, {"exclude": ".*attn2.*"}])
def test_other_layers_without_an_identity_are_no_traceback(run, changes):
    for file in run.folder.glob("checkpoints/*/training.safetensors"):
        save_file(load_file(file), file)
    edit(run, **changes)
    with pytest.raises(RunError, match=r"no checkpoint of .* can be read"):
        resume(run)


def test_weights_of_the_base_that_changed_are_said(run, stopped_run, base_folder, tmp_path):
    base = shutil.copytree(base_folder, tmp_path / "base")
    for folder in run.checkpoints():
        file = folder / "training.safetensors"
        metadata = {"run": re.sub(re.escape(str(base_folder)), str(base), identity_of(file))}
        save_file(load_file(file), file, metadata)
    edit(run, base=str(base))
    (weight_file,) = (base / "unet").glob("*.safetensors")
    save_file({key: value + 0.1 for key, value in load_file(weight_file).items()}, weight_file, {"format": "pt"})
    events = []
    resume(run, events.append)
    assert any(
        "have changed since the last checkpoint" in event.message for event in events if isinstance(event, Notice)
    )


def identity_of(file):
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.metadata()["run"]
