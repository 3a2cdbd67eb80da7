"""Stopped, damaged, finished and running runs: what resumes, and what is rejected."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, StopAfter, weights
from safetensors.torch import load_file, save_file

from hra_diffusion.adapters import adapter_file
from training import config as configs
from training.loop import train
from training.runs.events import Notice, Step
from training.runs.lookup import find, samples_of
from training.runs.run_folder import Run, RunError


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "method": "lora",
            "ema_decay": 0.9,
            "lr_scheduler": "linear",
            "lr_warmup_steps": 2,
            "text_encoder_lr_scale": 0.3,
        },
        {"method": "shoft", "gradient_accumulation_steps": 2, "train_text_encoder": False, "prior_loss_weight": 0},
    ],
    ids=["hra", "lora-ema", "shoft-accumulation"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(settings, tmp_path, changes):
    config = settings(steps=5, checkpoint_every=100, sample_every=0, **changes)
    whole = weights(train(config, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [StopAfter(3)])
    run = find(tmp_path / "parts", "Rex")
    assert run is not None and run.state.status == "stopped" and run.state.step == 3
    assert run.checkpoints()[-1].name == "000003", "a checkpoint of the last step is saved"
    resumed = train(config, tmp_path / "parts", resume=True)
    assert torch.equal(weights(resumed), whole)
    first, both = (adapter_file.read_info(path).training["seconds"]["train"]
                   for path in (run.checkpoint_folder(3) / "adapter.safetensors", resumed))  # fmt: skip
    assert 0 < first < both, "the seconds of both sessions are added"


def test_a_resumed_pissa_run_needs_no_decomposition(settings, tmp_path, monkeypatch):
    config = settings(method="lora", options={"init": "pissa"}, prior_loss_weight=0, sample_prompts=[])
    whole = weights(train(config, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [StopAfter(2)])
    monkeypatch.delattr(torch.linalg, "svd")
    assert torch.equal(weights(train(config, tmp_path / "parts", resume=True)), whole)


def test_resume_before_the_optimizer_has_moments(settings, tmp_path):
    """The float16 loss scaler may have skipped every step so far."""
    config = settings(steps=5, checkpoint_every=100, sample_every=0)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, [StopAfter(2)])
    (state,) = tmp_path.glob("Rex/checkpoints/*/training.safetensors")
    save_file({key: value for key, value in load_file(state).items() if not key.startswith("moment/")}, state)
    assert torch.isfinite(weights(train(config, tmp_path, resume=True))).all()


def test_resume_falls_back_from_a_damaged_checkpoint(settings, tmp_path):
    config = settings(steps=6, sample_every=0)
    whole = weights(train(config, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [StopAfter(5)])
    newest = tmp_path / "parts" / "Rex" / "checkpoints" / "000005" / "training.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    events = []
    assert torch.equal(weights(train(config, tmp_path / "parts", [events.append], resume=True)), whole)
    assert any(isinstance(event, Notice) and "000005" in event.message for event in events)


def test_an_adapter_without_a_checkpoint_is_not_overwritten(settings, tmp_path):
    """It may come from another program, or from a finished run whose checkpoints were deleted."""
    adapter = tmp_path / "Rex" / "Rex.safetensors"
    adapter.parent.mkdir()
    adapter.write_bytes(b"somebody's")
    for resume in (False, True):
        with pytest.raises(RunError, match="exists already; choose another --name"):
            train(settings(), tmp_path, resume=resume)
    assert adapter.read_bytes() == b"somebody's"


def test_a_restarted_run_clears_samples_and_log(settings, tmp_path):
    config = settings(sample_prompts=["a {subject}", "a red {subject}"], prior_loss_weight=0)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, [StopAfter(1)])
    run = Run(tmp_path / "Rex")
    shutil.rmtree(run.folder / "checkpoints")
    train(settings(prior_loss_weight=0), tmp_path)
    assert {step: len(files) for step, files in run.samples().items()} == {0: 1, 2: 1, 4: 1}
    assert samples_of(run.adapter) == [run.sample_path(4, 0)]
    assert samples_of(run.checkpoint_folder(3) / "adapter.safetensors") == [run.sample_path(2, 0)], "those before it"
    assert samples_of(tmp_path / "elsewhere.safetensors") == []
    names = [json.loads(line)["event"] for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert names.count("step") == 4 and "stopped" not in names


def test_resume_rejects_changed_captions(settings, tmp_path, photos):
    copy = shutil.copytree(photos, tmp_path / "photos")
    config = settings(photos=[str(copy)])
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "out", [StopAfter(3)])
    (copy / "0.txt").write_text("another caption")
    with pytest.raises(RunError, match=r"photos or captions .* have changed"):
        train(config, tmp_path / "out", resume=True)


def test_resuming_a_finished_run_does_nothing(settings, tmp_path):
    adapter = train(settings(), tmp_path)
    stamp, events = adapter.stat().st_mtime_ns, []
    assert train(settings(), tmp_path, [events.append], resume=True) == adapter
    assert adapter.stat().st_mtime_ns == stamp and not events


def test_a_name_in_use_is_rejected(settings, tmp_path):
    train(settings(), tmp_path)
    with pytest.raises(RunError, match="exists already; continue with --resume, or choose another --name"):
        train(settings(), tmp_path)
    with pytest.raises(RunError, match=r"was started with other values: steps 4, not 3; learning_rate 0.01, not 0.001"):
        train(settings(steps=3, learning_rate=1e-3), tmp_path, resume=True)


def test_a_running_run_can_not_be_resumed(settings, tmp_path):
    def resume_twice(event):
        if isinstance(event, Step) and event.step == 1:
            with pytest.raises(RunError, match="being trained by another process"):
                train_in_subprocess(settings(), tmp_path)

    train(settings(), tmp_path, [resume_twice])


def train_in_subprocess(config, output):
    """Resume the run in another process and raise its error here."""
    code = (
        "import sys, pathlib; from hra_diffusion.libraries import BITSANDBYTES, PEFT, hide; hide(BITSANDBYTES, PEFT)\n"
        "from training import config; from training.loop import train\n"
        "train(config.read(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]), resume=True)"
    )
    configs.write(config, output / "other.yaml")
    command = [sys.executable, "-c", code, str(output / "other.yaml"), str(output)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if result.returncode:
        raise RunError(result.stderr.strip().splitlines()[-1])
