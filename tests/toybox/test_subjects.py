"""Tests of the benchmark's prompts and subjects, and of the subjects' photos."""

import re
from collections import Counter
from pathlib import Path

import pytest

from toybox.attributes import ATTRIBUTES
from toybox.objects import OBJECTS, find_object
from toybox.prompts import LIVE_PROMPTS, OBJECT_PROMPTS
from toybox.scenes import SCENES
from toybox.subjects import SUBJECTS, Subject, find_subject, render_photos, save_photos


def test_prompts_are_the_benchmarks_in_its_order(shared: Path) -> None:
    """25 for objects, 25 for live subjects."""
    text = (shared / "data" / "dreambooth" / "prompts_and_classes.txt").read_text()
    objects, live = (re.findall(r"^'(.*)'\.format", part, re.MULTILINE) for part in text.split("Live Subject Prompts"))
    for prompts, published in ((OBJECT_PROMPTS, objects), (LIVE_PROMPTS, live)):
        assert [prompt.text for prompt in prompts] == [prompt.replace("{0} {1}", "{subject}") for prompt in published]
        assert len(prompts) == 25


def test_world_has_every_scene_and_attribute_of_the_prompts() -> None:
    """Each prompt names either a scene or an attribute."""
    for prompt in (*OBJECT_PROMPTS, *LIVE_PROMPTS):
        assert (prompt.scene in SCENES) != (prompt.attribute in ATTRIBUTES)


def test_subjects_are_unknown_to_the_base_model() -> None:
    """Five are live, five objects; those made of known sprites are modified; all class nouns are known."""
    known = {entry.code for entry in OBJECTS}
    assert Counter(subject.live for subject in SUBJECTS.values()) == {True: 5, False: 5}
    for subject in SUBJECTS.values():
        assert find_object(subject.object).code not in known or subject.hue_shift or subject.head
        assert subject.noun in {entry.noun for entry in OBJECTS}


def test_sprites_of_subjects_are_unique(sprites: Path) -> None:
    """They differ from the known sprites that some are made of."""
    made = {subject.make_sprite(sprites).tobytes() for subject in SUBJECTS.values()}
    known = {Subject(name, "", False, name).make_sprite(sprites).tobytes() for name in ("parrot", "teddy bear", "pig")}
    assert len(made) == len(SUBJECTS)
    assert not made & known


def test_replaced_head_is_at_the_top_centre(sprites: Path) -> None:
    """The lower part is the body's."""
    head, body, joined = (
        Subject(name, "toy", False, name, head=other).make_sprite(sprites)
        for name, other in (("pig", ""), ("teddy bear", ""), ("teddy bear", "pig"))
    )
    middle = body.width // 2
    assert joined.getpixel((middle, body.height // 4)) == pytest.approx(
        head.getpixel((middle, body.height // 2)), abs=3
    )
    assert joined.getpixel((middle, body.height - 4)) == body.getpixel((middle, body.height - 4))


def test_photos_of_a_benchmark_subject_are_rendered_by_name(sprites: Path) -> None:
    """Another seed gives other scenes; the error for a known object lists the subjects."""
    first, again, other = (render_photos(sprites, "pig bear", 2, seed)[0].tobytes() for seed in (0, 0, 1))
    assert first == again != other
    assert find_subject("octopus", hue_shift=0.5).hue_shift == 0.5
    with pytest.raises(ValueError, match=r"choose one of octopus, .*pig bear"):
        find_subject("parrot")


def test_saved_photos_differ_and_have_a_notice(sprites: Path, tmp_path: Path) -> None:
    """An object that the base model was trained on is refused unless its hue is rotated."""
    save_photos(render_photos(sprites, "octopus", 5), tmp_path)
    photos = sorted(tmp_path.glob("*.png"))
    assert len({photo.read_bytes() for photo in photos}) == 5
    assert "MIT" in (tmp_path / "NOTICE").read_text()
    with pytest.raises(ValueError, match="trained on 'fox'"):
        render_photos(sprites, "fox", 1)
    assert len(render_photos(sprites, "fox", 2, hue_shift=0.5)) == 2
