"""Photos of visitors are decoded by another process, within limits of memory and time."""

import pytest
from PIL import Image
from sample_photos import scene

from training.data import decode_process
from training.data.dataset import load_dataset
from training.data.decode_process import Decoder
from training.data.photo import PhotoError


@pytest.fixture(scope="module")
def decoder():
    return Decoder()


def test_a_small_copy_and_the_facts_of_training(decoder, save, tmp_path):
    path = save(scene(1, 3000, 1400), "a.jpg")
    facts = decoder.decode(path, tmp_path / "copy")
    (photo,) = load_dataset([path], 64).photos
    assert (facts.size, facts.window, facts.sha256) == (photo.size, photo.crop, photo.sha256)
    assert Image.open(tmp_path / "copy").size == (2194, 1024)


@pytest.mark.parametrize(
    ("limit", "value", "reason"), [("MAX_SECONDS", 0.0, "seconds to decode"), ("MAX_MEMORY", 10**6, "GB of memory")]
)
def test_a_photo_beyond_a_limit_is_refused_and_the_next_one_decoded(
    decoder, save, tmp_path, monkeypatch, limit, value, reason
):
    path = save(scene(1, 4000, 3000), "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(decode_process, limit, value)
        patch.setattr(decode_process, "POLL_SECONDS", 0.01)
        with pytest.raises(PhotoError, match=rf"a\.png: takes more than .* {reason}.*Save a smaller copy"):
            decoder.decode(path, tmp_path / "copy")
    assert decoder.decode(path, tmp_path / "copy").size == (4000, 3000)


def test_a_crash_of_the_decoder_refuses_one_photo(decoder, save, tmp_path):
    path = save(scene(), "a.png")
    decoder.decode(path, tmp_path / "copy")
    decoder._process.kill()
    decoder._process.wait()
    assert decoder.decode(path, tmp_path / "copy").size == (160, 160)


def test_a_damaged_photo_is_named(decoder, tmp_path):
    (tmp_path / "é.jpg").write_bytes(b"no photo")
    with pytest.raises(PhotoError, match=r"é\.jpg: is not a photo"):
        decoder.decode(tmp_path / "é.jpg", tmp_path / "copy")
    with pytest.raises(PhotoError, match="no copy can be saved"):
        Image.new("RGB", (90, 90)).save(tmp_path / "a.png")
        decoder.decode(tmp_path / "a.png", tmp_path / "nowhere" / "copy")
