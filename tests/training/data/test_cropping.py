"""Crop modes and crop boxes."""

import numpy as np
import pytest
from PIL import Image
from sample_photos import plain, scene

from training.data.dataset import load_dataset
from training.data.photo import PhotoError


def detail_at(place: str) -> Image.Image:
    """Grey with a busy patch at one end ("left", "right", "top", "bottom")."""
    size = (320, 128) if place in ("left", "right") else (128, 320)
    image = plain((128, 128, 128), size=size)
    corner = (16, 16) if place in ("left", "top") else (size[0] - 112, size[1] - 112)
    image.paste(scene(3, 96, 96), corner)
    return image


@pytest.mark.parametrize("place", ["left", "right", "top", "bottom"])
def test_the_smart_crop_contains_the_detail(save, place):
    image = detail_at(place)
    (photo,) = load_dataset([save(image, "a.png")], 128).photos
    left, top, right, bottom = photo.crop
    assert (right - left, bottom - top) == (128, 128)
    start = left + top
    assert start <= 16 if place in ("left", "top") else start >= 320 - 128 - 16
    assert np.array_equal(photo.image, image.crop(photo.crop))  # at its own size nothing is resampled


def test_the_smart_crop_of_a_plain_photo_is_the_middle(save):
    (photo,) = load_dataset([save(plain((9, 9, 9), size=(300, 100)), "a.png")], 64).photos
    assert photo.crop[0] == pytest.approx(100, abs=2)


def test_the_center_crop_is_the_middle(save):
    (photo,) = load_dataset([save(detail_at("left"), "a.png")], 64, "center").photos
    assert photo.crop == (96, 0, 224, 128)
    assert photo.image.size == (64, 64)


def test_the_letterbox_pads_with_the_mean_colour_of_the_edges(save):
    image = plain((200, 100, 50), size=(200, 100))
    image.paste((0, 0, 0), (20, 20, 180, 80))
    (photo,) = load_dataset([save(image, "a.png")], 100, "letterbox").photos
    assert photo.crop == (0, 0, 200, 100)
    assert photo.image.size == (100, 100)
    assert photo.image.getpixel((50, 5)) == photo.image.getpixel((50, 95)) == (200, 100, 50)
    assert photo.image.getpixel((50, 50)) == (0, 0, 0)


def test_a_letterboxed_panorama_is_at_least_one_pixel_high(save):
    (photo,) = load_dataset([save(plain((1, 2, 3), size=(12_800, 64)), "a.png")], 64, "letterbox").photos
    assert photo.image.size == (64, 64)


def test_a_crop_box_is_applied_before_the_square_crop(tmp_path, save):
    path = save(detail_at("right"), "a.png")
    (square,) = load_dataset([tmp_path], 64, boxes={path: (10, 20, 90, 100)}).photos
    assert square.crop == (10, 20, 90, 100)
    (wide,) = load_dataset([tmp_path], 64, "center", boxes={path: (0, 0, 200, 100)}).photos
    assert wide.crop == (50, 0, 150, 100)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((0, 0, 400, 100), r"does not lie in the upright photo of 320×128"),
        ((-1, 0, 100, 100), r"does not lie in"),
        ((100, 0, 10, 100), r"does not lie in"),
        ((0, 0, 100, 63), r"is under 64 pixels"),
    ],
)
def test_an_invalid_crop_box_is_rejected(save, box, reason):
    path = save(detail_at("left"), "a.png")
    with pytest.raises(PhotoError, match=rf"a\.png: crop box .* {reason}"):
        load_dataset([path], 64, boxes={path: box})
