"""A resumed run finds its photos by their content, wherever they have moved."""

import json
import shutil

import pytest
import torch
from conftest import StopAfter, weights
from PIL import Image

from hra_diffusion.errors import Note
from training import config as configs
from training.data.dataset import load_dataset
from training.loop import train
from training.runs.events import Notice
from training.runs.lookup import photos_of
from training.runs.run_folder import Run, RunError


@pytest.fixture(scope="module")
def begun(tmp_path_factory, photos, base_folder):
    """A run stopped after two of four steps, with a crop box for one photo and its photos moved elsewhere.

    Returns the configuration, the output folder, the folder of the photos, the weights of an uninterrupted run and the
    cropped photos.
    """
    root = tmp_path_factory.mktemp("begun")
    own = shutil.copytree(photos, root / "pictures" / "dog")
    values = {"name": "Rex", "photos": [str(own)], "class_noun": "dog", "base": str(base_folder), "device": "cpu",
              "resolution": 64, "batch_size": 2, "learning_rate": 1e-2, "steps": 4, "checkpoint_every": 100,
              "sample_prompts": [], "prior_loss_weight": 0, "train_text_encoder": False, "method": "lora",
              "boxes": {str(own / "2.jpg"): (10, 10, 110, 110)}}  # fmt: skip
    config = configs.parse(values)
    whole = weights(train(config, root / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config, root / "out", [StopAfter(2)])
    seen = [photo.image.tobytes() for photo in load_dataset(config.photos, 64, config.crop, config.boxes).photos]
    kept = own.rename(root / "out" / "kept")
    return config, root / "out", kept, whole, seen


@pytest.fixture
def run(begun, tmp_path):
    """A copy of the stopped run."""
    return Run(shutil.copytree(begun[1] / "Rex", tmp_path / "out" / "Rex"))


def shuffled(source, target):
    """Copy the photos under other names, in another order, with an additional photo and without captions."""
    target.mkdir(parents=True)
    for number, photo in enumerate(sorted(source.glob("*.jpg"), reverse=True)):
        shutil.copy(photo, target / f"IMG_{number}.jpg")
    Image.new("RGB", (90, 90), "red").save(target / "Additional.png")


def test_photos_in_a_given_folder_are_found_by_content(begun, run, tmp_path):
    config, _, kept, whole, _ = begun
    shuffled(kept, tmp_path / "new")
    heard = []
    given = config.model_copy(update={"photos": (tmp_path / "new",)})
    assert torch.equal(weights(train(given, tmp_path / "out", [heard.append], resume=True)), whole)
    said = [event.message for event in heard if isinstance(event, Notice)]
    assert any("Additional.png" in message and "not part of this run" in message for message in said)
    assert {path.parent for path in run.config.photos} == {tmp_path / "new"} and len(run.config.photos) == 3


@pytest.mark.parametrize("place", ["renamed", "photos/copied by the page", "Rex/inputs/00"])
def test_moved_photos_are_found_near_their_old_place(begun, run, tmp_path, place):
    config, _, kept, whole, _ = begun
    near = config.photos[0].with_name(place) if place == "renamed" else tmp_path / "out" / place
    shuffled(kept, near)
    heard = []
    try:
        adapter = train(config, tmp_path / "out", [heard.append], resume=True)
    finally:
        shutil.rmtree(near)
    assert torch.equal(weights(adapter), whole)
    assert any(str(near) in event.message for event in heard if isinstance(event, Notice))


def test_different_photos_are_rejected_whatever_their_names(begun, run, tmp_path):
    config, _, kept, _, _ = begun
    new = shutil.copytree(kept, tmp_path / "far" / "away" / "new")
    Image.new("RGB", (90, 90), "red").save(new / "1.jpg")
    for places, missing in ((config.photos, 3), ((new,), 1)):
        with pytest.raises(RunError, match=rf"{missing} of the 3 photos .* started with .*--photos"):
            train(config.model_copy(update={"photos": places}), tmp_path / "out", resume=True)
    assert run.config == config, "the run is unchanged"


def test_a_damaged_photos_json_is_rewritten(begun, run, tmp_path):
    config, _, kept, _, _ = begun
    before = json.loads((run.folder / "photos.json").read_text())
    (run.folder / "photos.json").write_text('[{"sha256": "0')
    kept.rename(config.photos[0])
    try:
        with pytest.warns(Note, match="set aside"):
            train(config, tmp_path / "out", resume=True)
    finally:
        config.photos[0].rename(kept)
    assert json.loads((run.folder / "photos.json").read_text()) == before


def test_a_run_stores_small_copies_of_its_photos(begun, run):
    """A comparison shows them beside the generated images."""
    for adapter in (run.adapter, run.checkpoint_folder(2) / "adapter.safetensors"):
        assert [image.tobytes() for image in photos_of(adapter, 64)] == begun[4]
    (run.folder / "photos" / "01.png").write_bytes(b"\x89PNG")
    (run.folder / "config.yaml").write_text("")
    assert len(photos_of(run.adapter, 64)) == 2
