"""Geometry of sprites: padding, cropping, and where the head, the eyes and the body are."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from toybox.drawing import Rng

SpriteFunction = Callable[[Image.Image, Rng], Image.Image]
"""A function from a cropped RGBA sprite to another one."""


def pad(sprite: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """Add transparent margins to a sprite."""
    canvas = Image.new("RGBA", (sprite.width + left + right, sprite.height + top + bottom))
    canvas.paste(sprite, (left, top))
    return canvas


def crop_visible(sprite: Image.Image) -> Image.Image:
    """Crop a sprite to its visible part."""
    return sprite.crop(sprite.getchannel("A").getbbox())


def longest_run(row: np.ndarray) -> tuple[int, int]:
    """Return start and end of the longest run of true values, or (0, 0) if there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(np.int8), [0]))))
    if not edges.size:
        return 0, 0
    starts, ends = edges[::2], edges[1::2]
    best = int(np.argmax(ends - starts))
    return int(starts[best]), int(ends[best])


class Head(NamedTuple):
    """Position of a head: x and y of its top, its width, and the longer side of the whole sprite."""

    x: float
    y: float
    width: float
    size: int


def find_head(sprite: Image.Image) -> Head:
    """Estimate the position of a sprite's head from its outline.

    The head starts where the sprite is at least 42 % as wide as its longer side, within the upper 37 %: below ears,
    horns and antennae. If the sprite is nowhere so wide, the head is the widest row of the upper 37 %.
    """
    opaque = np.asarray(sprite.getchannel("A")) > 128
    high = max(2, round(0.37 * sprite.height))
    runs = [longest_run(row) for row in opaque[:high]]
    widths = np.array([end - start for start, end in runs])
    wide = np.flatnonzero(widths >= 0.42 * max(sprite.size))
    y = int(wide[0]) if wide.size else int(np.argmax(widths))
    middle = sum(runs[y]) // 2
    while y > 0 and opaque[y - 1, middle]:
        y -= 1
    level = min(y + round(0.16 * sprite.height), sprite.height - 1)
    start, end = longest_run(opaque[level])
    if not start <= middle <= end:
        start, end = runs[y]
    return Head(middle, y, end - start, max(sprite.size))


def find_eyes(sprite: Image.Image) -> tuple[float, float, float]:
    """Estimate where glasses sit: x and y of the point between the eyes, and the radius of a lens."""
    x, y, width, size = find_head(sprite)
    return x, y + 0.33 * (sprite.height - y), float(np.clip(0.22 * width, 0.13 * size, 0.18 * size))


def body_span(sprite: Image.Image, height: float) -> tuple[int, int]:
    """Return the left and right end of the longest opaque run at a height from 0 (top) to 1 (bottom)."""
    alpha = np.asarray(sprite.getchannel("A")) > 128
    return longest_run(alpha[min(round(height * sprite.height), sprite.height - 1)])
