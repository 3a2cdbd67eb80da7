"""Attributes of the whole surface: colours, shiny, wet, cube shaped."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from toybox.attributes.shapes import star
from toybox.attributes.sprite import SpriteFunction, crop_visible, pad
from toybox.drawing import Colour, Rng, blob, darken, jitter, lighten


def tint(colour: Colour) -> SpriteFunction:
    """Return a function that gives a sprite one hue and keeps its shading."""

    def apply(sprite: Image.Image, rng: Rng) -> Image.Image:
        shade = jitter(rng, colour, 10)
        alpha = sprite.getchannel("A")
        grey = sprite.convert("L")
        usual = np.median(np.asarray(grey)[np.asarray(alpha) > 128])
        middle = int(np.clip(usual, 90, 190))
        tinted = ImageOps.colorize(grey, darken(shade, 0.16), lighten(shade, 0.55), shade, midpoint=middle)
        tinted = tinted.convert("RGBA")
        tinted.putalpha(alpha)
        return tinted

    return apply


def shiny(sprite: Image.Image, rng: Rng) -> Image.Image:
    """Polished metal: high contrast, white bands across the sprite, sparkles around it."""
    alpha = sprite.getchannel("A")
    curve = [round(255 * float(np.clip(0.5 + 1.5 * (value / 255 - 0.53), 0, 1))) for value in range(256)]
    polished = sprite.convert("RGB").point(curve * 3).convert("RGBA")
    width, height = sprite.size
    bands = Image.new("L", sprite.size)
    draw = ImageDraw.Draw(bands)
    start = rng.uniform(0.16, 0.30) * width
    for left, thickness in ((start, 0.13), (start + 0.20 * width, 0.05), (start + 0.62 * width, 0.08)):
        right = left + thickness * width
        draw.polygon(
            [
                (left + 0.3 * height, 0),
                (right + 0.3 * height, 0),
                (right - 0.3 * height, height),
                (left - 0.3 * height, height),
            ],
            190,
        )
    polished.paste((255, 255, 255), (0, 0), bands.filter(ImageFilter.BoxBlur(2)))
    polished.putalpha(alpha)
    margin = round(0.08 * max(sprite.size))
    canvas = pad(polished, margin, margin, margin, margin)
    draw = ImageDraw.Draw(canvas)
    for x, y in ((0.14, 0.16), (0.86, 0.24), (0.74, 0.80), (0.24, 0.72)):
        x, y = (x + rng.uniform(-0.05, 0.05)) * canvas.width, (y + rng.uniform(-0.05, 0.05)) * canvas.height
        radius = rng.uniform(0.11, 0.16) * max(sprite.size)
        draw.polygon(star(x, y, radius * 1.15, 4, 0.26), (255, 232, 140))
        draw.polygon(star(x, y, radius, 4, 0.2), (255, 255, 255))
    return crop_visible(canvas)


def wet(sprite: Image.Image, rng: Rng) -> Image.Image:
    """Dark and bluish, with water drops on it, standing in a puddle."""
    width, height = sprite.size
    alpha = sprite.getchannel("A")
    soaked = sprite.convert("RGB").point([round(value * gain) for gain in (0.84, 0.86, 0.97) for value in range(256)])
    soaked = Image.blend(soaked, Image.new("RGB", sprite.size, (20, 84, 190)), 0.08).convert("RGBA")
    soaked.putalpha(alpha)
    margin, below = round(0.10 * width), round(0.12 * max(sprite.size))
    canvas = pad(Image.new("RGBA", sprite.size), margin, 0, margin, below)
    middle, foot = canvas.width / 2, height - 0.01 * height
    draw = ImageDraw.Draw(canvas)
    blob(draw, middle, foot, 0.56 * width, below * 0.92, (58, 146, 214))
    blob(draw, middle, foot - 0.1 * below, 0.50 * width, below * 0.72, (122, 196, 240))
    canvas.alpha_composite(soaked, (margin, 0))
    opaque = np.argwhere(np.asarray(alpha) > 200)
    size = max(sprite.size)
    for y, x in opaque[rng.integers(len(opaque), size=16)]:
        draw_drop(draw, x + margin, y, rng.uniform(0.020, 0.036) * size)
    for x in (rng.uniform(0.1, 0.3), rng.uniform(0.7, 0.9)):
        draw_drop(draw, margin + x * width, rng.uniform(0.80, 0.92) * height, 0.042 * size)
    return canvas


def draw_drop(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """Draw a drop of water with a pointed top, a dark rim and a highlight."""
    for size, colour in ((radius * 1.25, (20, 84, 160)), (radius, (140, 214, 255))):
        draw.polygon(
            [(x, y - 2.5 * size), (x + 0.92 * size, y - 0.3 * size), (x - 0.92 * size, y - 0.3 * size)], colour
        )
        blob(draw, x, y, size, size, colour)
    blob(draw, x - radius * 0.3, y - radius * 0.2, radius * 0.4, radius * 0.5, (255, 255, 255))


def cube(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A cube in the sprite's main colour, with the sprite stretched over its front."""
    side, depth = 190, round(rng.uniform(50, 62))
    colour = main_colour(sprite)
    canvas = Image.new("RGBA", (side + depth, side + depth))
    top = [(0, depth), (depth, 0), (side + depth, 0), (side, depth)]
    right = [(side, depth), (side + depth, 0), (side + depth, side), (side, side + depth)]
    draw = ImageDraw.Draw(canvas)
    draw.polygon(top, lighten(colour, 0.45))
    draw.polygon(right, darken(colour, 0.58))
    front = Image.new("RGBA", (side, side), lighten(colour, 0.12))
    spread = sprite.resize((side - 8, side - 8), Image.Resampling.BILINEAR)
    front.alpha_composite(spread, (4, 4))
    canvas.paste(front, (0, depth))
    edge = lighten(colour, 0.7)
    draw.line([(0, depth), (side, depth), (side, side + depth)], fill=edge, width=5)
    draw.line([(side, depth), (side + depth, 0)], fill=edge, width=5)
    return canvas


def main_colour(sprite: Image.Image) -> Colour:
    """Return the mean colour of the opaque pixels, weighted by saturation."""
    small = np.asarray(sprite.resize((48, 48), Image.Resampling.BILINEAR), np.float64).reshape(-1, 4)
    colours = small[:, :3]
    weight = (small[:, 3] > 200) * (colours.max(axis=1) - colours.min(axis=1) + 10)
    return tuple(int(channel) for channel in weight @ colours / max(weight.sum(), 1))  # type: ignore[return-value]
