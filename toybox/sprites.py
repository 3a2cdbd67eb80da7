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
    picture = Image.open(path).convert("RGBA")
    return picture.crop(picture.getchannel("A").getbbox())


def recolour(sprite: Image.Image, hue_turn: float) -> Image.Image:
    """Rotate the hue of a sprite by ``hue_turn`` turns of the colour circle."""
    hue, saturation, value = sprite.convert("RGB").convert("HSV").split()
    turned = (np.asarray(hue, np.int32) + round(hue_turn * 256)) % 256
    recoloured = Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGBA")
    recoloured.putalpha(sprite.getchannel("A"))
    return recoloured
