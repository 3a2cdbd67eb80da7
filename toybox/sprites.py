"""Sprites: the drawings that the toy world is rendered from.

They come from the npm package `@lobehub/fluent-emoji-3d` (MIT; the drawings are Microsoft's Fluent emoji, MIT): 256×256
WebP files with transparency, named by code point. Unpack the package and pass its ``assets`` folder. Only rendering the
world needs them; the model and the sample subjects do not.
"""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE = "@lobehub/fluent-emoji-3d"


class SpritesMissingError(FileNotFoundError):
    """The sprite folder or a sprite in it is missing."""


@cache
def load_sprite(folder: Path, code: str) -> Image.Image:
    """Load the RGBA sprite ``code`` (a code point such as "1f98a"), cropped to its visible part.

    Raises SpritesMissingError with the source of the sprites if the file is missing.
    """
    path = folder / f"{code}.webp"
    if not path.is_file():
        raise SpritesMissingError(
            f"{path} is missing. Unpack the npm package {PACKAGE} and pass its assets folder as --sprites."
        )
    sprite = Image.open(path).convert("RGBA")
    return sprite.crop(sprite.getchannel("A").getbbox())


def rotate_hue(sprite: Image.Image, shift: float) -> Image.Image:
    """Rotate the hue of a sprite by a fraction of the colour circle."""
    hue, saturation, value = sprite.convert("RGB").convert("HSV").split()
    rotated = (np.asarray(hue, np.int32) + round(shift * 256)) % 256
    result = Image.merge("HSV", (Image.fromarray(rotated.astype(np.uint8)), saturation, value)).convert("RGBA")
    result.putalpha(sprite.getchannel("A"))
    return result
