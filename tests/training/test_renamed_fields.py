"""Files that hold the field names of earlier versions still work."""

import json
from pathlib import Path

import pytest
from conftest import StopAfter

from training import config as configs
from training.config import RENAMED, TrainConfig
from training.data.drafts import Draft
from training.loop import train
from training.runs import calibration
from training.runs.run_folder import Run

SAMPLE = Path(__file__).parent / "samples" / "config-0.1.0.yaml"
VALUES = {
    "timestep_bias": 0.8,
    "memory_limit": "64GB",
    "sample_batch_size": 4,
    "lr_scheduler": "linear",
    "lr_warmup_steps": 2,
    "prior_loss_weight": 0.5,
    "num_class_images": 3,
    "max_grad_norm": 0.7,
    "gradient_accumulation_steps": 2,
    "text_encoder_lr_scale": 0.5,
}


def test_a_configuration_file_of_an_earlier_version_is_read():
    text = SAMPLE.read_text()
    assert all(f"\n{old}:" in text and f"\n{new}:" not in text for old, new in RENAMED.items())
    config = configs.read(SAMPLE)
    assert {name: getattr(config, name) for name in VALUES} == VALUES
    assert set(RENAMED.values()) == set(VALUES) <= set(TrainConfig.model_fields)


def test_values_from_python_may_use_the_earlier_names():
    config = configs.parse(
        {"name": "Rex", "photos": ["a.jpg"], "class_noun": "dog", "fit": "8GB", "schedule": "linear"}
    )
    assert (config.memory_limit, config.lr_scheduler) == ("8GB", "linear")


def test_a_run_started_by_an_earlier_version_resumes(settings, tmp_path):
    config = settings(steps=3, checkpoint_every=1, sample_every=0, sample_prompts=[], lr_warmup_steps=1)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, [StopAfter(1)])
    file = tmp_path / "Rex" / "config.yaml"
    text = file.read_text()
    for old, new in RENAMED.items():
        assert f"\n{new}:" in text
        text = text.replace(f"\n{new}:", f"\n{old}:")
    file.write_text(text)
    train(config, tmp_path, resume=True)
    assert Run(tmp_path / "Rex").finished


def test_a_draft_of_an_earlier_version_keeps_its_settings(tmp_path):
    (tmp_path / "draft.json").write_text(json.dumps({"photos": [], "values": {"noun": "dog", "fit": "8GB"}}))
    assert Draft(tmp_path).read().values == {"noun": "dog", "memory_limit": "8GB"}


def test_a_measurement_of_an_earlier_version_is_found(monkeypatch):
    """The key of the same run, as version 0.1.0 computed it."""
    monkeypatch.setattr(calibration.platform, "node", lambda: "computer")
    monkeypatch.setattr(calibration.os, "cpu_count", lambda: 2)
    values = {
        "name": "Rex", "photos": ["a.jpg"], "class_noun": "dog", "device": "cpu", "method": "lora", "batch_size": 4,
        "targets": "attention", "train_text_encoder": False, "options": {"rank": 4}, "resolution": 64,
        "sample_prompts": ["a {subject}"], "gradient_accumulation_steps": 2, "sample_batch_size": 4,
        "prior_loss_weight": 0,
    }  # fmt: skip
    assert calibration.cost_key(configs.parse(values)) == "e1e8d7e3f218fe3b"
