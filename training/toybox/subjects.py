"""Subjects: a few pictures of one held-out thing in different places, as a person would photograph it."""

from pathlib import Path

import numpy as np
from PIL import Image

from training.toybox.scenes import SCENES
from training.toybox.sprites import load_sprite, recolour
from training.toybox.world import HELD_OUT, find_thing, render

NOTICE = (
    "The drawing is from Microsoft's Fluent emoji (MIT) by way of the npm package @lobehub/fluent-emoji-3d (MIT), "
    "rendered into scenes by training/toybox.\n"
)


def take_photos(sprites: Path, name: str, count: int, seed: int = 0, hue_turn: float = 0.0) -> list[Image.Image]:
    """`count` pictures of the thing called `name`, each in a scene of its own (as long as there are enough).

    Raises ValueError for something the base was trained on, unless its colours are turned: that is no new subject.
    """
    thing = find_thing(name)
    if thing not in HELD_OUT and not hue_turn:
        held_out = ", ".join(thing.name for thing in HELD_OUT)
        raise ValueError(f"the base knows {name!r} already: choose one of {held_out}, or turn its colours with --hue")
    sprite = load_sprite(sprites, thing.code)
    if hue_turn:
        sprite = recolour(sprite, hue_turn)
    rng = np.random.default_rng(seed)
    scenes = list(SCENES.values())
    chosen = rng.permutation(len(scenes))
    return [render(sprite, scenes[chosen[index % len(scenes)]], rng) for index in range(count)]


def save_photos(photos: list[Image.Image], folder: Path) -> None:
    """Write the pictures as 1.png, 2.png, … with a NOTICE of where the drawing is from."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(photos, start=1):
        photo.save(folder / f"{number}.png", optimize=True)
    (folder / "NOTICE").write_text(NOTICE)
