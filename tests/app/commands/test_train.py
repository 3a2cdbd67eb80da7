"""The flags of ``hra-diffusion train``."""

import argparse

import pytest

from app.commands import train as command
from training.config import RENAMED

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
