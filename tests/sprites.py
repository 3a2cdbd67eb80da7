"""Sprites for tests of toybox and of its benchmarks, instead of the real ones."""

import colorsys
from pathlib import Path

from PIL import Image, ImageDraw

from toybox.objects import HELD_OUT, OBJECTS


def write_sprites(folder: Path) -> Path:
    """Write a coloured disc as the sprite of every object and return the folder."""
    for index, entry in enumerate((*OBJECTS, *HELD_OUT)):
        sprite = Image.new("RGBA", (64, 64))
        colour = tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(index / 120, 0.8, 0.9))
        ImageDraw.Draw(sprite).ellipse((8, 4, 56, 60), fill=colour)
        sprite.save(folder / f"{entry.code}.webp", lossless=True)
    return folder
