"""Advice on photos: made-up sets that are bad in one way, and what good ones cover."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sample_photos import SUBJECTS, scene, subject

from hra_diffusion.models.sources import ASSETS
from training.data.dataset import load_dataset

GOOD = ("backpack", "clock", "dog", "rc_car")
"""Subjects whose photos give no warning."""


def exposed(image, stops):
    """The image with ``stops`` EV more light."""
    light = (np.asarray(image, dtype=float) / 255) ** 2.2 * 2.0**stops
    return Image.fromarray((255 * light.clip(0, 1) ** (1 / 2.2)).astype(np.uint8))


def kinds(paths, size=256):
    return [warning.kind for warning in load_dataset(paths, size).warnings]


def photos_of(name):
    return [Image.open(path).convert("RGB") for path in sorted(subject(name).glob("*.jpg"))]


@pytest.mark.parametrize("name", GOOD)
def test_underexposed_photos_are_reported(name, save):
    paths = [save(exposed(image, -4.5), f"{number}.png") for number, image in enumerate(photos_of(name))]
    assert kinds(paths).count("dark") == len(paths)


@pytest.mark.parametrize("name", ["dog", "dog6", "clock"])
def test_overexposed_photos_of_light_subjects_are_reported(name, save):
    paths = [save(exposed(image, 3), f"{number}.png") for number, image in enumerate(photos_of(name))]
    assert kinds(paths).count("bright") > len(paths) / 2 and "dark" not in kinds(paths)


@pytest.mark.parametrize("colour", [(150, 160, 140), (250, 250, 250), (40, 60, 120), (200, 80, 60)])
def test_a_subject_that_is_small_in_the_frame_is_reported(colour, save):
    for side, far in ((40, True), (150, False)):
        image = Image.new("RGB", (256, 256), colour)
        ImageDraw.Draw(image).rectangle((0, 200, 256, 256), tuple(value * 9 // 10 for value in colour))
        image.paste(photos_of("duck_toy")[1].crop((150, 150, 400, 400)).resize((side, side)), (90, 60))
        assert ("far" in kinds([save(image, f"{side}.png")])) == far


def test_one_background_in_all_photos_is_reported(save):
    place = photos_of("rc_car")[1].resize((256, 256))
    paths = []
    for number, image in enumerate(photos_of("dog")):
        together = exposed(place, 0.1 * number)  # the light changes
        together.paste(image.resize((140, 140)), (50 + 4 * number, 60))
        paths.append(save(together, f"{number}.png"))
    assert "background" in kinds(paths) and "background" not in kinds(paths[:2])


def test_one_pose_in_all_photos_is_reported(save):
    figure = photos_of("rc_car")[3].resize((256, 256)).crop((30, 50, 226, 246))
    paths = []
    for number, colour in enumerate([(90, 160, 80), (60, 80, 170), (190, 120, 60), (120, 120, 120)]):
        together = Image.blend(scene(number, 256, 256), Image.new("RGB", (256, 256), colour), 0.8)
        together.paste(figure, (30 + number, 30))
        paths.append(save(together, f"{number}.png"))
    found = load_dataset(paths, 256).warnings
    assert [warning.kind for warning in found] == ["pose"]
    assert found[0].message.startswith("0.png and all others: one pose in all.")


@pytest.mark.parametrize("name", ["robot", "octopus"])
def test_the_sample_subjects_give_no_warning(name):
    assert kinds([ASSETS / "subjects" / name], 128) == []


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_line_says_what_the_photos_cover(name):
    dataset = load_dataset([subject(name)], 256)
    (line,) = dataset.coverage
    assert line.startswith(f"these {len(dataset.photos)} photos cover: ")
    warned = [warning.kind for warning in dataset.warnings]
    assert ("one background" in line) == ("background" in warned) and ("one view" in line) == ("pose" in warned)


def test_subjects_are_judged_apart(tmp_path):
    paths = [subject("cat"), subject("dog")]
    concepts = dict.fromkeys(sorted(subject("dog").resolve().glob("*.jpg")), 1)
    dataset = load_dataset(paths, 256, concepts=concepts)
    assert [warning.kind for warning in dataset.warnings] == ["background"], "that of the cat"
    assert len(dataset.coverage) == 2
    assert "background" not in [warning.kind for warning in load_dataset(paths, 256).warnings]
