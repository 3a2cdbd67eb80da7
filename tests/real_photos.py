"""Photos of the DreamBooth data set in the shapes of a phone's photos, and a run on them with a stop."""

from pathlib import Path

import pytest
import torch
from conftest import StopAfter, weights
from PIL import Image, ImageDraw, ImageOps
from sample_photos import subject

from training.config import TrainConfig
from training.loop import train
from training.runs.events import Captions, Step, Validated
from training.runs.run_folder import Run

SHAPES = ((4, 3), (3, 4), (16, 9), (1, 1), (9, 16))
SETTINGS = {
    "name": "Rex", "class_noun": "dog", "device": "cpu", "crop": "bucket", "mask": "auto", "validation": "auto",
    "validation_every": 4, "steps": 4, "batch_size": 1, "checkpoint_every": 100, "prior_loss_weight": 0,
    "sample_prompts": [],
}  # fmt: skip


def phone_photos(folder: Path, side: int) -> Path:
    """Save the five photos of a dog, which are square, cut to other shapes with this long side.

    Two have captions, one a mask file.
    """
    pytest.importorskip("cv2")  # GrabCut makes the other masks
    folder.mkdir()

    def save(image: Image.Image, number: int, suffix: str) -> None:
        width, height = (side * part // max(SHAPES[number]) for part in SHAPES[number])
        ImageOps.fit(image, (width, height), centering=(0.5, 0.4)).save(folder / f"{number}{suffix}")

    for number, file in enumerate(sorted(subject("dog").glob("*.jpg"))):
        save(Image.open(file), number, ".jpg")
    mask = Image.new("L", (512, 512))
    ImageDraw.Draw(mask).ellipse((60, 90, 480, 470), fill=255)
    save(mask, 3, ".mask.png")
    (folder / "0.txt").write_text("a dog under cherry blossoms")
    (folder / "2.caption").write_text("a photo of a {subject} in front of a red wall")
    return folder


def train_with_a_stop(config: TrainConfig, output: Path) -> Path:
    """Train without and with a stop, check that both give the same, and return the adapter's file."""
    events, resumed = [], []
    whole = train(config, output / "whole", [events.append])
    (captions,) = (event.captions for event in events if isinstance(event, Captions))
    assert [*captions.values()] == [
        "sks dog, a dog under cherry blossoms", "a photo of a sks dog", "a photo of a sks dog in front of a red wall",
        "a photo of a sks dog", "a photo of a sks dog",
    ]  # fmt: skip
    run = Run(whole.parent)
    for kind in ("photos", "masks"):
        assert len({Image.open(file).size for file in (run.folder / kind).iterdir()}) == 3, "a bucket each"
    assert all(record.mask for record in run.photo_records)
    with pytest.raises(KeyboardInterrupt):
        train(config, output / "parts", [StopAfter(2)])
    adapter = train(config, output / "parts", [resumed.append], resume=True)
    assert [event.step for event in resumed if isinstance(event, Step)] == [3, 4]
    losses = [event for event in events if isinstance(event, Validated)]
    assert [event.step for event in losses] == [0, 4]
    assert [event for event in resumed if isinstance(event, Validated)] == losses[1:]
    assert torch.equal(weights(adapter), weights(whole))
    return adapter
