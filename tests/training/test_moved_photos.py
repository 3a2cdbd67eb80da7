"""A run goes on with its own photos, wherever they are now: they are known by their content."""

import json
import shutil

import pytest
import torch
from conftest import StopAfter, weights
from PIL import Image

from training.events import Notice
from training.loop import train
from training.photos import ingest
from training.runs import Run, RunError, photos_of

LEAN = {"steps": 4, "sample_prompts": [], "prior_weight": 0, "train_text_encoder": False, "checkpoint_every": 100,
        "method": "lora"}  # fmt: skip


@pytest.fixture
def own(tmp_path, photos):
    """A copy of the photos that may be moved about."""
    return shutil.copytree(photos, tmp_path / "pictures" / "dog")


@pytest.fixture
def stopped(settings, tmp_path, own):
    """A run that was stopped after two of its four steps, with one photo cut by hand; and its configuration."""
    config = settings(**LEAN, photos=[str(own)], boxes={str(own / "2.jpg"): (10, 10, 110, 110)})
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "out", [StopAfter(2)])
    return config


def uninterrupted(config, folder):
    return weights(train(config, folder))


def shuffled(source, target):
    """The photos under other names, in another order, with a further photo and without captions."""
    target.mkdir(parents=True)
    for number, photo in enumerate(sorted(source.glob("*.jpg"), reverse=True)):
        shutil.copy(photo, target / f"IMG_{number}.jpg")
    Image.new("RGB", (90, 90), "red").save(target / "A further one.png")


def test_photos_given_anew_are_taken_by_their_content(stopped, own, tmp_path):
    wanted = uninterrupted(stopped, tmp_path / "whole")
    shuffled(own, tmp_path / "new")
    shutil.rmtree(own.parent)
    heard = []
    moved = stopped.model_copy(update={"photos": (tmp_path / "new",)})
    adapter = train(moved, tmp_path / "out", [heard.append], resume=True)
    assert torch.equal(weights(adapter), wanted)
    said = [event.message for event in heard if isinstance(event, Notice)]
    assert any("A further one.png" in message and "not part of this run" in message for message in said)
    kept = Run(tmp_path / "out" / "Rex").config
    assert {path.parent for path in kept.photos} == {tmp_path / "new"} and len(kept.photos) == 3


def test_photos_renamed_in_their_folder_or_with_it_are_found(stopped, own, tmp_path):
    wanted = uninterrupted(stopped, tmp_path / "whole")
    shuffled(own, own.parent / "dog (renamed)")
    shutil.rmtree(own)
    heard = []
    assert torch.equal(weights(train(stopped, tmp_path / "out", [heard.append], resume=True)), wanted)
    assert any("dog (renamed)" in event.message for event in heard if isinstance(event, Notice))


def test_the_outputs_folder_may_move_with_the_photos_the_page_put_there(settings, own, tmp_path):
    album = tmp_path / "out" / "photos" / "Rex"
    shutil.copytree(own, album)
    config = settings(**LEAN, photos=[str(album)])
    wanted = uninterrupted(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "out", [StopAfter(2)])
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    run = Run(tmp_path / "elsewhere" / "Rex")
    assert torch.equal(weights(train(run.config, tmp_path / "elsewhere", resume=True)), wanted)


def test_other_photos_are_refused_whatever_their_names(stopped, own, tmp_path):
    new = shutil.copytree(own, tmp_path / "far" / "away" / "new")
    Image.new("RGB", (90, 90), "red").save(new / "1.jpg")
    shutil.rmtree(own.parent)
    for place, missing in ((own, 3), (new, 1)):
        with pytest.raises(RunError, match=rf"{missing} of the 3 photos .* began with .*--photos"):
            train(stopped.model_copy(update={"photos": (place,)}), tmp_path / "out", resume=True)
    assert Run(tmp_path / "out" / "Rex").config.photos == (own,), "nothing was changed"


@pytest.mark.parametrize("content", ["", '[{"sha256": "0'])
def test_a_damaged_list_of_photos_is_made_again_and_said(stopped, tmp_path, content):
    run, heard = Run(tmp_path / "out" / "Rex"), []
    before = json.loads((run.folder / "photos.json").read_text())
    (run.folder / "photos.json").write_text(content)
    train(stopped, tmp_path / "out", [heard.append], resume=True)
    assert json.loads((run.folder / "photos.json").read_text()) == before
    assert any("photos.json" in event.message for event in heard if isinstance(event, Notice))


def test_a_run_keeps_small_copies_of_its_photos(stopped, own, tmp_path):
    """What Compare shows beside the pictures, wherever the photos are now."""
    run = Run(tmp_path / "out" / "Rex")
    seen = [photo.image for photo in ingest(stopped.photos, 64, stopped.crop, stopped.boxes).photos]
    shutil.rmtree(own.parent)
    for adapter in (run.adapter, run.checkpoint(2) / "adapter.safetensors"):
        assert [image.tobytes() for image in photos_of(adapter, 64)] == [image.tobytes() for image in seen]
    (run.folder / "photos" / "01.png").write_bytes(b"\x89PNG")
    assert len(photos_of(run.adapter, 64)) == 2
    (run.folder / "config.yaml").write_text("")
    assert len(photos_of(run.adapter, 64)) == 2
