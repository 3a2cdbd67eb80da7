"""Shaded shapes of clothes and hats."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from toybox.drawing import Colour, darken, lighten

Point = tuple[float, float]
Shape = Callable[[ImageDraw.ImageDraw], None]
"""A function that fills a shape with 255 in a mask."""


def paste_shape(canvas: Image.Image, colour: Colour, shape: Shape, within: Image.Image | None = None) -> None:
    """Paste a shape in a colour, lit from the upper left; only where the mask ``within`` (L) allows."""
    mask = Image.new("L", canvas.size)
    shape(ImageDraw.Draw(mask))
    if within is not None:
        mask = ImageChops.multiply(mask, within)
    box = mask.getbbox()
    if box is None:
        return
    mask = mask.crop(box)
    reach = max(2, min(mask.size) // 6)
    inner = ImageChops.offset(ImageOps.expand(mask, reach), reach // 2, reach // 2).filter(ImageFilter.BoxBlur(reach))
    inner = ImageOps.crop(inner, reach)
    layer = ImageOps.colorize(inner, darken(colour, 0.62), lighten(colour, 0.22), colour).convert("RGBA")
    layer.putalpha(mask)
    canvas.alpha_composite(layer, box[:2])


def polygon(*points: Point) -> Shape:
    """A polygon with these corners."""
    return lambda draw: draw.polygon(points, 255)


def oval(x: float, y: float, radius_x: float, radius_y: float) -> Shape:
    """An ellipse with its centre at (x, y)."""
    return lambda draw: draw.ellipse((x - radius_x, y - radius_y, x + radius_x, y + radius_y), 255)


def block(left: float, top: float, right: float, bottom: float, radius: float = 0) -> Shape:
    """A rectangle with rounded corners."""
    return lambda draw: draw.rounded_rectangle((left, top, right, bottom), radius, 255)


def star(x: float, y: float, radius: float, points: int = 5, waist: float = 0.45) -> list[Point]:
    """Return the corners of a star with its centre at (x, y); ``waist`` is the ratio of inner to outer radius."""
    angles = np.arange(2 * points) * np.pi / points
    radii = np.where(np.arange(2 * points) % 2, radius * waist, radius)
    return [(x + r * np.sin(a), y - r * np.cos(a)) for r, a in zip(radii, angles, strict=True)]
