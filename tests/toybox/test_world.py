"""Tests of the toy world: things, captions, rendering and shards."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toybox.captions import OPENINGS, RARE_TOKENS, caption_of, sample_caption
from toybox.attributes import ATTRIBUTES
from toybox.drawing import SIZE
from toybox.scenes import SCENES
from toybox.shards import load_shards, render_missing, render_shard
from toybox.sprites import SpritesMissingError, load_sprite, rotate_hue
from toybox.subjects import SUBJECTS, save_photos, render_photos
from toybox.labels import FIXED_HUE, Label, parse_second_object, sample_labels
from toybox.objects import HELD_OUT, OBJECTS, find_object
from toybox.rendering import IMAGE_SIZE, pose, render_image, render_with_mask


def test_held_out_things_are_excluded_from_training() -> None:
    """By name and by sprite."""
    held_out = {thing.name for thing in HELD_OUT} | {thing.code for thing in HELD_OUT}
    drawn = sample_labels(np.random.default_rng(0), 20000)
    things = {find_object(thing) for label in drawn for thing in (label.object, *read_names(label))}
    assert not held_out & {name for thing in things for name in (thing.name, thing.code)}
    assert things == set(OBJECTS)
    assert {label.scene for label in drawn} == set(SCENES)
    assert {label.attribute for label in drawn} == {"", *ATTRIBUTES}


def test_looks_of_the_whole_surface_come_more_often() -> None:
    """There are fewer of them, and in each every thing is another."""
    worn = [ATTRIBUTES[label.attribute].precedes_noun for label in sample_labels(np.random.default_rng(0), 5000) if label.attribute]
    assert len(worn) / 5000 == pytest.approx(0.7, abs=0.03)
    assert np.mean(worn) == pytest.approx(0.6, abs=0.03)


def test_what_wears_a_hat_is_hardly_smaller_for_it() -> None:
    """A square and the same with half as much again on top: the square's part keeps most of its size."""
    plain, tall = (
        np.mean([pose(Image.new("RGBA", size, "red"), np.random.default_rng(n)).width for n in range(50)])
        for size in ((100, 100), (100, 150))
    )
    assert 0.75 < tall / plain < 0.95


def read_names(label: Label) -> list[str]:
    """The name of what stands beside, if anything."""
    return [thing.name for thing, _ in parse_second_object(label.second_object)]


def test_things_have_names_and_drawings_of_their_own() -> None:
    """No two share one; every subject's class noun is known to the base."""
    everything = (*OBJECTS, *HELD_OUT)
    assert len({thing.name for thing in everything}) == len({thing.code for thing in everything}) == len(everything)
    assert {thing.noun for thing in HELD_OUT} <= {thing.noun for thing in OBJECTS}


@pytest.mark.parametrize("phrase", SCENES)
def test_a_scene_is_the_same_for_the_same_seed(sprites: Path, phrase: str) -> None:
    """And another for another; the picture has the promised size."""
    first, again, other = (render_image(sprites, Label("fox", phrase), seed) for seed in (3, 3, 4))
    assert first.size == (IMAGE_SIZE, IMAGE_SIZE)
    assert first.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize("phrase", SCENES)
def test_a_thing_can_be_seen_in_its_scene(sprites: Path, phrase: str) -> None:
    """It covers a fair part of the picture."""
    seen = np.asarray(render_image(sprites, Label("fox", phrase), 5), float)
    empty = np.asarray(SCENES[phrase].draw(np.random.default_rng(5)).image.reduce(SIZE // IMAGE_SIZE), float)
    # the light varies; the picture's upper edge shows by how much
    changed = np.abs(seen - empty * seen[:6].mean() / empty[:6].mean()).max(axis=2) > 20
    assert 0.1 < changed.mean() < 0.75


def test_recolouring_changes_hues_and_keeps_the_outline() -> None:
    """A third round the colour circle makes red green."""
    sprite = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert rotate_hue(sprite, 1 / 3).getpixel((0, 0)) == pytest.approx((0, 255, 0, 128), abs=6)


def test_a_missing_sprite_says_where_sprites_come_from(tmp_path: Path) -> None:
    """By the package's name."""
    with pytest.raises(SpritesMissingError, match="@lobehub/fluent-emoji-3d"):
        load_sprite(tmp_path, "1f98a")


def test_captions_are_worded_as_promised() -> None:
    """Openings, articles, class nouns, rare words and empty captions, in about the promised shares."""
    rng = np.random.default_rng(0)
    captions = [sample_caption(Label("owl", "in the snow"), rng) for _ in range(4000)]
    filled = [caption for caption in captions if caption]
    assert {f"{opening}an owl in the snow" for opening in OPENINGS} < set(captions)
    assert "a photo of a sks owl in the snow" in captions
    assert "a qwe bird in the snow" in captions
    assert captions.count("") / 4000 == pytest.approx(0.1, abs=0.02)
    assert sum("bird" in caption for caption in filled) / len(filled) == pytest.approx(0.35, abs=0.03)
    rare = sum(any(token in caption for token in RARE_TOKENS) for caption in filled)
    assert rare / len(filled) == pytest.approx(0.1, abs=0.02)
    assert sum("snow" in caption for caption in filled) / len(filled) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(
    ("label", "caption"),
    [
        (Label("owl", "in the snow"), "a photo of an owl in the snow"),
        (Label("owl", "in the snow", "red"), "a photo of a red owl in the snow"),
        (Label("fox", "on the beach", "wearing a santa hat"), "a photo of a fox wearing a santa hat on the beach"),
        (Label("fox", "on the beach", second_object="apple"), "a photo of a fox on the beach next to an apple"),
        (Label("fox", "on the beach", second_object="red apple"), "a photo of a fox on the beach next to a red apple"),
        (Label("owl", "in the snow", hue_shift=0.4), "a photo of a bird in the snow"),
    ],
)
def test_a_full_caption_says_all_there_is(label: Label, caption: str) -> None:
    """And of one in other colours no more than its class noun."""
    assert caption_of(label) == caption


def test_captions_omit_names_of_things_with_random_hue(sprites: Path) -> None:
    """All things but FIXED_HUE get random hues."""
    rng, label = np.random.default_rng(0), Label("owl", "in the snow", hue_shift=0.4)
    assert not any("owl" in sample_caption(label, rng) for _ in range(200))
    assert render_image(sprites, label, 1).tobytes() != render_image(sprites, Label("owl", "in the snow"), 1).tobytes()
    drawn = sample_labels(rng, 20000)
    assert {label.object for label in drawn if label.hue_shift} == {thing.name for thing in OBJECTS} - FIXED_HUE
    assert {subject.object for subject in SUBJECTS.values() if subject.hue_shift} <= FIXED_HUE


def test_two_things_are_side_by_side(sprites: Path) -> None:
    """One in each half, in random order."""
    scene = "on a white background"
    alone, beside = (render_image(sprites, Label("fox", scene, second_object=other), 1) for other in ("", "apple"))
    empty = np.asarray(SCENES[scene].draw(np.random.default_rng(1)).image.reduce(2), int)
    halves = [np.abs(np.asarray(beside, int) - empty).max(axis=2)[:, columns] > 60 for columns in np.s_[:64, 64:]]
    assert all(half.mean() > 0.08 for half in halves)
    assert alone.tobytes() != beside.tobytes()


def test_mask_covers_the_things(sprites: Path) -> None:
    """It marks where the image differs from the empty scene, except for shadows and the foreground."""
    scene = "on a white background"
    picture, where = render_with_mask(sprites, Label("fox", scene), 1)
    assert picture.tobytes() == render_image(sprites, Label("fox", scene), 1).tobytes()
    red, covered = np.asarray(picture, int), np.asarray(where)
    thing = red.max(axis=2) - red.min(axis=2) > 90
    assert (covered[thing] > 0).all()
    assert thing[covered == 255].mean() > 0.98
    floating = np.asarray(render_with_mask(sprites, Label("fox", "floating in an ocean of milk"), 1)[1])
    assert (floating > 0).sum() < (covered > 0).sum()


def test_shards_are_deterministic_and_rendered_once(sprites: Path, tmp_path: Path) -> None:
    """A shard depends on its number alone; existing ones are kept."""
    assert render_shard(sprites, 1, 3).values.equal(render_shard(sprites, 1, 3).values)
    render_missing(sprites, tmp_path, range(1), 2)
    before = (tmp_path / "00000.safetensors").stat().st_mtime_ns
    render_missing(sprites, tmp_path, range(2), 2)
    assert (tmp_path / "00000.safetensors").stat().st_mtime_ns == before
    assert load_shards(tmp_path).values.shape == (4, IMAGE_SIZE, IMAGE_SIZE, 3)


def test_a_subject_is_five_photos_with_their_licence(sprites: Path, tmp_path: Path) -> None:
    """All different, small, and only of what the base does not know."""
    save_photos(render_photos(sprites, "octopus", 5), tmp_path)
    photos = sorted(tmp_path.glob("*.png"))
    assert len({photo.read_bytes() for photo in photos}) == 5
    assert "MIT" in (tmp_path / "NOTICE").read_text()
    with pytest.raises(ValueError, match="trained on 'fox'"):
        render_photos(sprites, "fox", 1)
    assert len(render_photos(sprites, "fox", 2, hue_shift=0.5)) == 2


def test_unknown_thing_lists_the_valid_ones() -> None:
    """The error names all things."""
    with pytest.raises(ValueError, match=r"'octopuss'.*octopus"):
        find_object("octopuss")
