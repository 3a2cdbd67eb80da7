"""A run goes on with its own photos, wherever they are now: they are known by their content."""

import json
import shutil

import pytest
import torch
from conftest import StopAfter, weights
from PIL import Image

from training import config as configs
from training.data.dataset import load_dataset
from training.loop import train
from training.runs.events import Notice
from training.runs.run_folder import Run, RunError, photos_of


@pytest.fixture(scope="module")
def begun(tmp_path_factory, photos, base_folder):
    """A run that was stopped after two of its four steps, one photo cut by hand; its photos, which are not where its
    configuration says; and the weights it comes to without a stop."""
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
    """A copy of its folder."""
    return Run(shutil.copytree(begun[1] / "Rex", tmp_path / "out" / "Rex"))


def shuffled(source, target):
    """The photos under other names, in another order, with a further photo and without captions."""
    target.mkdir(parents=True)
    for number, photo in enumerate(sorted(source.glob("*.jpg"), reverse=True)):
        shutil.copy(photo, target / f"IMG_{number}.jpg")
    Image.new("RGB", (90, 90), "red").save(target / "A further one.png")


def test_photos_given_anew_are_taken_by_their_content(begun, run, tmp_path):
    config, _, kept, whole, _ = begun
    shuffled(kept, tmp_path / "new")
    heard = []
    given = config.model_copy(update={"photos": (tmp_path / "new",)})
    assert torch.equal(weights(train(given, tmp_path / "out", [heard.append], resume=True)), whole)
    said = [event.message for event in heard if isinstance(event, Notice)]
    assert any("A further one.png" in message and "not part of this run" in message for message in said)
    assert {path.parent for path in run.config.photos} == {tmp_path / "new"} and len(run.config.photos) == 3


@pytest.mark.parametrize("renamed", [True, False])
def test_moved_photos_are_found_near_their_old_place(begun, run, tmp_path, renamed):
    config, _, kept, whole, _ = begun
    near = config.photos[0].with_name("renamed") if renamed else tmp_path / "out" / "photos" / "an album of the page"
    shuffled(kept, near)
    heard = []
    try:
        adapter = train(config, tmp_path / "out", [heard.append], resume=True)
    finally:
        shutil.rmtree(near)
    assert torch.equal(weights(adapter), whole)
    assert any(str(near) in event.message for event in heard if isinstance(event, Notice))


def test_other_photos_are_refused_whatever_their_names(begun, run, tmp_path):
    config, _, kept, _, _ = begun
    new = shutil.copytree(kept, tmp_path / "far" / "away" / "new")
    Image.new("RGB", (90, 90), "red").save(new / "1.jpg")
    for places, missing in ((config.photos, 3), ((new,), 1)):
        with pytest.raises(RunError, match=rf"{missing} of the 3 photos .* began with .*--photos"):
            train(config.model_copy(update={"photos": places}), tmp_path / "out", resume=True)
    assert run.config == config, "nothing was changed"


def test_a_damaged_list_of_photos_is_made_again_and_said(begun, run, tmp_path):
    config, _, kept, _, _ = begun
    before, heard = json.loads((run.folder / "photos.json").read_text()), []
    (run.folder / "photos.json").write_text('[{"sha256": "0')
    kept.rename(config.photos[0])
    try:
        train(config, tmp_path / "out", [heard.append], resume=True)
    finally:
        config.photos[0].rename(kept)
    assert json.loads((run.folder / "photos.json").read_text()) == before
    assert any("photos.json is damaged" in event.message for event in heard if isinstance(event, Notice))


def test_a_run_keeps_small_copies_of_its_photos(begun, run):
    """Compare shows them beside the pictures, wherever the photos are now."""
    for adapter in (run.adapter, run.checkpoint(2) / "adapter.safetensors"):
        assert [image.tobytes() for image in photos_of(adapter, 64)] == begun[4]
    (run.folder / "photos" / "01.png").write_bytes(b"\x89PNG")
    (run.folder / "config.yaml").write_text("")
    assert len(photos_of(run.adapter, 64)) == 2
