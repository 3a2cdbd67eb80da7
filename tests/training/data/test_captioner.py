"""Captions by a model: a tiny random BLIP saved in a folder."""

import json
import shutil

import pytest
from conftest import save_photos
from PIL import Image
from tiny_blip import tiny_blip

from app.cli import main
from hra_diffusion.errors import UserError
from training.data.captioner import Captioner, is_local, write_captions


@pytest.fixture(scope="session")
def blip(tmp_path_factory):
    return tiny_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    return save_photos(tmp_path / "photos", 3)


def test_a_photo_gets_a_caption_in_one_line(blip, photos):
    captioner = Captioner(str(blip), local_files_only=True)
    image = Image.open(photos / "0.jpg")
    caption = captioner.caption(image)
    assert caption and "[" not in caption and "\n" not in caption and caption == captioner.caption(image)


def test_the_command_writes_caption_files_and_keeps_those_that_exist(blip, photos, capsys):
    (photos / "1.txt").write_text("mine")
    command = ["caption", str(photos), "--captioner", str(blip)]
    assert main([*command, "--class-noun", "qwerty", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["captions"]
    assert sorted(written) == [str(photos / "0.txt"), str(photos / "2.txt")]
    assert (photos / "1.txt").read_text() == "mine"
    assert (photos / "0.txt").read_text() == written[str(photos / "0.txt")]
    assert written[str(photos / "0.txt")].startswith("{subject}, "), "the class is not among the words"
    assert main(command) == 0
    assert "3 photos have a caption already; --overwrite replaces it" in capsys.readouterr().out
    assert main([*command, "--overwrite", "--quiet"]) == 0 and (photos / "1.txt").read_text() != "mine"


def test_the_class_noun_in_a_caption_becomes_the_subject(blip, photos, monkeypatch):
    monkeypatch.setattr(Captioner, "caption", lambda *_: "a dog on the grass")
    image = Image.open(photos / "0.jpg")
    assert write_captions([image], "dog", str(blip)) == ["a {subject} on the grass"]
    assert write_captions([image], "", str(blip)) == ["a dog on the grass"]


def test_a_captioner_that_can_not_be_had_is_explained(blip, photos, tmp_path, capsys):
    assert main(["caption", str(photos)]) == 1
    error = capsys.readouterr().err
    assert "the captioner Salesforce/blip-image-captioning-base can't be loaded" in error
    assert "downloaded once from the Hugging Face hub" in error and not list(photos.glob("*.txt"))
    broken = shutil.copytree(blip, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="can't be loaded"):
        Captioner(str(broken), local_files_only=True)
    assert is_local(str(blip)) and not is_local("some/captioner") and not is_local("nothing")
