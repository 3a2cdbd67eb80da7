"""Warnings of small, blurred and duplicate photos, on drawn ones and on the DreamBooth data set."""

import pytest
from PIL import Image, ImageFilter
from sample_photos import SUBJECTS, scene, subject

from training.data.dataset import Dataset, load_dataset


def kinds(dataset: Dataset) -> list[str]:
    return [warning.kind for warning in dataset.warnings]


def test_an_enlarged_photo_gives_a_warning(save):
    small = save(scene(0, 100, 90), "small.png")
    (warning,) = load_dataset([small], 128).warnings
    assert (warning.kind, warning.photo) == ("small", small)
    assert warning.message.startswith("small.png: 90 pixels enlarged to 128 look soft")
    assert load_dataset([small], 90).warnings == ()


def test_letterboxing_compares_the_long_side_with_the_resolution(save):
    assert load_dataset([save(scene(0, 200, 90), "a.png")], 200, "letterbox").warnings == ()


def test_a_blurred_photo_gives_a_warning(save):
    blurred = save(scene(0, 400, 400).filter(ImageFilter.GaussianBlur(3)), "soft.png")
    (warning,) = load_dataset([blurred], 256).warnings
    assert (warning.kind, warning.photo) == ("blurred", blurred)
    assert warning.message.startswith("soft.png: blurred")


def test_letterbox_edges_do_not_hide_a_blur(save):
    soft = scene(0, 400, 200).filter(ImageFilter.GaussianBlur(3))
    assert kinds(load_dataset([save(soft, "soft.png")], 256, "letterbox")) == ["blurred"]


def test_each_copy_gives_one_warning(tmp_path, save):
    first = save(scene(), "a/1.png")
    for name in ("a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(first.read_bytes())
    dataset = load_dataset([tmp_path / "a", tmp_path / "b"], 64)
    assert kinds(dataset) == ["duplicate", "duplicate"]
    assert dataset.warnings[0].message.startswith("2.png: the same file as 1.png,")
    assert dataset.warnings[1].message.startswith(f"1.png: the same file as {first},")


@pytest.mark.parametrize("change", ["saved again", "smaller", "brighter", "trimmed"])
def test_near_duplicates_give_a_warning(save, change):
    original = Image.open(subject("dog") / "00.jpg").convert("RGB")
    options = {"quality": 30} if change == "saved again" else {}
    changed = {
        "saved again": original,
        "smaller": original.resize((300, 300)),
        "brighter": original.point(lambda value: value * 1.1),
        "trimmed": original.crop((5, 5, 507, 507)),
    }[change]
    paths = [save(original, "0.png"), save(changed, "1.jpg", **options)]
    (warning,) = (found for found in load_dataset(paths, 256).warnings if found.kind == "duplicate")
    assert warning.photo == paths[1]
    assert warning.message.startswith("1.jpg: looks the same as 0.png")


RIGHT = {"bear_plushie": ["pose"], "cat": ["background"], "red_cartoon": ["background"], "teapot": ["dark"]}
"""What is wrong with the photos of the data set, by eye."""


@pytest.mark.parametrize("name", SUBJECTS)
def test_real_subjects_give_the_right_warnings_and_no_other(name):
    dataset = load_dataset([subject(name)], 256)
    assert 4 <= len(dataset.photos) <= 6
    assert kinds(dataset) == RIGHT.get(name, [])
    assert dataset.warnings == () or name != "teapot" or dataset.warnings[0].photo.name == "03.jpg"
    assert all(photo.image.size == (256, 256) and photo.image.mode == "RGB" for photo in dataset.photos)


@pytest.mark.parametrize("name", SUBJECTS)
def test_blurred_real_photos_all_give_a_warning(name, save):
    originals = sorted(subject(name).glob("*.jpg"))
    paths = [save(Image.open(path).filter(ImageFilter.GaussianBlur(2.5)), path.name, quality=95) for path in originals]
    found = kinds(load_dataset(paths, 256))
    assert [kind for kind in found if kind not in RIGHT.get(name, [])] == ["blurred"] * len(paths)
