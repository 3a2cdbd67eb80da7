"""Tests of sprites and rendering."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toybox.drawing import SIZE
from toybox.labels import Label
from toybox.rendering import IMAGE_SIZE, pose, render_image, render_with_mask, world_fingerprint
from toybox.scenes import SCENES
from toybox.sprites import SpritesMissingError, load_sprite, rotate_hue


def test_hats_hardly_shrink_their_wearer() -> None:
    """The width of a square stays within 25 % if a hat of half its height is added."""
    plain, tall = (
        np.mean([pose(Image.new("RGBA", size, "red"), np.random.default_rng(n)).width for n in range(50)])
        for size in ((100, 100), (100, 150))
    )
    assert 0.75 < tall / plain < 0.95


@pytest.mark.parametrize("phrase", SCENES)
def test_scenes_are_deterministic(sprites: Path, phrase: str) -> None:
    """Equal seeds give equal images, other seeds others."""
    first, again, other = (render_image(sprites, Label("fox", phrase), seed) for seed in (3, 3, 4))
    assert first.size == (IMAGE_SIZE, IMAGE_SIZE)
    assert first.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize("phrase", SCENES)
def test_object_is_visible_in_its_scene(sprites: Path, phrase: str) -> None:
    """It covers between 10 % and 75 % of the image."""
    image = np.asarray(render_image(sprites, Label("fox", phrase), 5), float)
    empty = np.asarray(SCENES[phrase].draw(np.random.default_rng(5)).image.reduce(SIZE // IMAGE_SIZE), float)
    # the brightness is random; the upper edge of the image shows by how much it differs
    changed = np.abs(image - empty * image[:6].mean() / empty[:6].mean()).max(axis=2) > 20
    assert 0.1 < changed.mean() < 0.75


def test_hue_rotation_keeps_the_alpha_channel() -> None:
    """A third of the colour circle turns red into green."""
    sprite = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert rotate_hue(sprite, 1 / 3).getpixel((0, 0)) == pytest.approx((0, 255, 0, 128), abs=6)


def test_missing_sprite_names_the_package(tmp_path: Path) -> None:
    """The error says where the sprites come from."""
    with pytest.raises(SpritesMissingError, match="@lobehub/fluent-emoji-3d"):
        load_sprite(tmp_path, "1f98a")


def test_two_objects_are_side_by_side(sprites: Path) -> None:
    """One in each half, in random order."""
    scene = "on a white background"
    alone, beside = (render_image(sprites, Label("fox", scene, second_object=other), 1) for other in ("", "apple"))
    empty = np.asarray(SCENES[scene].draw(np.random.default_rng(1)).image.reduce(2), int)
    halves = [np.abs(np.asarray(beside, int) - empty).max(axis=2)[:, columns] > 60 for columns in np.s_[:64, 64:]]
    assert all(half.mean() > 0.08 for half in halves)
    assert alone.tobytes() != beside.tobytes()


def test_mask_covers_the_objects(sprites: Path) -> None:
    """Without shadows and without what the foreground of a scene covers."""
    scene = "on a white background"
    image, mask = render_with_mask(sprites, Label("fox", scene), 1)
    assert image.tobytes() == render_image(sprites, Label("fox", scene), 1).tobytes()
    pixels, covered = np.asarray(image, int), np.asarray(mask)
    disc = pixels.max(axis=2) - pixels.min(axis=2) > 90
    assert (covered[disc] > 0).all()
    assert disc[covered == 255].mean() > 0.98
    floating = np.asarray(render_with_mask(sprites, Label("fox", "floating in an ocean of milk"), 1)[1])
    assert (floating > 0).sum() < (covered > 0).sum()


def test_fingerprint_is_that_of_existing_work_folders() -> None:
    """Change it only with the world: it invalidates all renders and trained models."""
    assert world_fingerprint().startswith("0481d9b9fa02d607")
