"""Sprites: the pictures of things that the toy world is built from.

They come from the npm package `@lobehub/fluent-emoji-3d` (MIT; the drawings are Microsoft's Fluent emoji, MIT): 256×256
WebP files with transparency, named by code point. Unpack the package and pass its `assets` folder. Only re-making the
world needs them; the finished model and the sample subjects do not.
"""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE = "@lobehub/fluent-emoji-3d"


class SpritesMissingError(FileNotFoundError):
    """The sprite folder, or a sprite in it, is not there."""


@cache
def load_sprite(folder: Path, code: str) -> Image.Image:
    """The RGBA sprite `code` (a code point such as "1f98a"), cropped to what is visible of it.

    Raises SpritesMissingError, saying where sprites come from, when the file is absent.
    """
    path = folder / f"{code}.webp"
    if not path.is_file():
        raise SpritesMissingError(
            f"{path} is missing. Unpack the npm package {PACKAGE} and pass its assets folder as --sprites."
        )
    picture = Image.open(path).convert("RGBA")
    return picture.crop(picture.getchannel("A").getbbox())


def recolour(sprite: Image.Image, hue_turn: float) -> Image.Image:
    """The same drawing, a thing nobody has seen: every hue turned by `hue_turn` (1 is once round the colour circle)."""
    hue, saturation, value = sprite.convert("RGB").convert("HSV").split()
    turned = (np.asarray(hue, np.int32) + round(hue_turn * 256)) % 256
    recoloured = Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGBA")
    recoloured.putalpha(sprite.getchannel("A"))
    return recoloured
