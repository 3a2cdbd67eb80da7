"""Generated sprites, so that tests don't need the real ones."""

import colorsys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from toybox.objects import HELD_OUT, OBJECTS


@pytest.fixture(scope="session")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with a coloured disc as the sprite of every thing."""
    folder = tmp_path_factory.mktemp("sprites")
    for index, thing in enumerate((*OBJECTS, *HELD_OUT)):
        sprite = Image.new("RGBA", (64, 64))
        colour = tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(index / 120, 0.8, 0.9))
        ImageDraw.Draw(sprite).ellipse((8, 4, 56, 60), fill=colour)
        sprite.save(folder / f"{thing.code}.webp", lossless=True)
    return folder
