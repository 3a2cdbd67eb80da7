"""Subjects that the base model has never seen, and their photos.

A subject is a held-out object, or a new combination of known sprites: an object in other colours, or a body with
another object's head.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from toybox.drawing import Rng
from toybox.objects import HELD_OUT, find_object
from toybox.prompts import LIVE_PROMPTS, OBJECT_PROMPTS, Prompt
from toybox.rendering import apply_attribute, compose
from toybox.scenes import SCENES, find_scene
from toybox.sprites import load_sprite, rotate_hue

NOTICE = (
    "The drawing is from Microsoft's Fluent emoji (MIT) by way of the npm package @lobehub/fluent-emoji-3d (MIT), "
    "rendered into scenes by toybox.\n"
)

HEAD_WIDTH = 0.66
"""Width of a replaced head as a fraction of the body's."""


@dataclass(frozen=True)
class Subject:
    """A subject: its name, class noun, prompt list (``live`` or object), and the object whose sprite it uses.

    ``hue_shift`` rotates the sprite's hue; ``head`` names another object that replaces its head.
    """

    name: str
    noun: str
    live: bool
    object: str
    hue_shift: float = 0.0
    head: str = ""

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The benchmark's prompts for this subject."""
        return LIVE_PROMPTS if self.live else OBJECT_PROMPTS

    def make_sprite(self, sprites: Path) -> Image.Image:
        """Make the subject's sprite from those in a folder."""
        sprite = load_sprite(sprites, find_object(self.object).code)
        if self.head:
            sprite = replace_head(sprite, load_sprite(sprites, find_object(self.head).code))
        return rotate_hue(sprite, self.hue_shift) if self.hue_shift else sprite


LIVE = ("t rex", "hedgehog", "monkey", "penguin")
"""Held-out objects that use the prompts for live subjects."""

SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        *(Subject(entry.name, entry.noun, entry.name in LIVE, entry.name) for entry in HELD_OUT),
        Subject("yellow parrot", "bird", True, "parrot", hue_shift=0.21),
        Subject("pig bear", "toy", False, "teddy bear", head="pig"),
    )
}
"""The ten subjects of the benchmark."""


def replace_head(body: Image.Image, head: Image.Image) -> Image.Image:
    """Paste another head over a body's, both RGBA, aligned at the top and centre."""
    width = round(HEAD_WIDTH * body.width)
    head = head.resize((width, round(head.height * width / head.width)), Image.Resampling.BILINEAR)
    joined = body.copy()
    joined.alpha_composite(head, ((body.width - width) // 2, 0))
    return joined


def find_subject(name: str, hue_shift: float = 0.0) -> Subject:
    """Return the subject called ``name``, or the object of that name with its hue rotated.

    Raises ValueError for an object that the base model was trained on, unless its hue is rotated.
    """
    if name in SUBJECTS and not hue_shift:
        return SUBJECTS[name]
    entry = find_object(name)
    if not hue_shift:
        raise ValueError(
            f"the base model was trained on {name!r}: choose one of {', '.join(SUBJECTS)}, or change its hue with --hue"
        )
    return Subject(name, entry.noun, name in LIVE, name, hue_shift)


def render_subject(
    sprites: Path, subject: Subject, scene: str, attribute: str = "", seed: int | Rng = 0
) -> Image.Image:
    """Render a subject in a scene, optionally with an attribute; equal seeds give equal images."""
    rng = np.random.default_rng(seed)
    return compose([apply_attribute(subject.make_sprite(sprites), attribute, rng)], find_scene(scene), rng)


def sample_scenes(rng: Rng, count: int) -> list[str]:
    """Sample the phrases of ``count`` scenes, without repetition as long as there are enough."""
    order, phrases = rng.permutation(len(SCENES)), list(SCENES)
    return [phrases[order[index % len(phrases)]] for index in range(count)]


def render_photos(sprites: Path, name: str, count: int, seed: int = 0, hue_shift: float = 0.0) -> list[Image.Image]:
    """Render ``count`` photos of the subject called ``name``, each in another scene as long as there are enough.

    Raises ValueError as ``find_subject`` does.
    """
    subject, rng = find_subject(name, hue_shift), np.random.default_rng(seed)
    return [render_subject(sprites, subject, scene, seed=rng) for scene in sample_scenes(rng, count)]


def save_photos(photos: list[Image.Image], folder: Path) -> None:
    """Write photos as 1.png, 2.png, … with a NOTICE about the source of the drawing."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(photos, start=1):
        photo.save(folder / f"{number}.png", optimize=True)
    (folder / "NOTICE").write_text(NOTICE)
