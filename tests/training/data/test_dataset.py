"""Loading whole data sets of photos."""

import hashlib

import numpy as np
import pytest
from PIL import Image
from sample_photos import plain, scene

from training.data.dataset import load_dataset
from training.data.photo import PhotoError


def middle(image: Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return tuple(np.asarray(image)[image.height // 2, image.width // 2].tolist())


def test_good_photos_give_no_warning(tmp_path, save):
    paths = [save(scene(seed, 200, 180), f"{seed}.png") for seed in range(2)]
    dataset = load_dataset([tmp_path], 128)
    assert dataset.warnings == dataset.ignored == ()
    assert [photo.path for photo in dataset.photos] == paths
    assert {photo.size for photo in dataset.photos} == {(200, 180)}


def test_a_crop_box_without_its_photo_is_rejected(save):
    with pytest.raises(PhotoError, match=r"b\.png: has a crop box but is not among the photos"):
        load_dataset([save(scene(), "a.png")], 64, boxes={save(scene(1), "b.png"): (0, 0, 64, 64)})


def test_an_unknown_crop_mode_is_rejected(save):
    with pytest.raises(PhotoError, match=r"unknown crop mode 'middle'. Use bucket, smart, center or letterbox"):
        load_dataset([save(scene(), "a.png")], 64, "middle")  # pyright: ignore[reportArgumentType]


def test_the_files_are_not_modified(tmp_path, save):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(scene(0, 200, 100), "a.jpg", exif=exif), save(scene(1), "b.heic"), save(plain((0, 0, 0, 9), "RGBA"), "c.png")
    (tmp_path / "a.txt").write_text("a caption")

    def state() -> dict[str, tuple[bytes, int]]:
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}

    before = state()
    dataset = load_dataset([tmp_path], 64)
    assert state() == before
    assert dataset.photos[0].sha256 == hashlib.sha256(before["a.jpg"][0]).hexdigest()
    assert dataset.photos[0].size == (100, 200)
