"""Scenes in which the object floats: water, milk."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from toybox.drawing import SIZE, Rng, blob, jitter
from toybox.scenes.backdrop import SKY, Backdrop, landscape


def water(rng: Rng) -> Backdrop:
    """Blue water with light ripples that covers the lowest part of the objects."""
    image = landscape(rng, SKY, ((60, 150, 210), (22, 92, 164)), 0.34)
    draw_ripples(image, rng, 0.38)
    ground = rng.uniform(0.80, 0.90)
    line = round((ground - 0.07) * SIZE)
    front = image.convert("RGBA")
    alpha = Image.new("L", (SIZE, SIZE))
    alpha.paste(210, (0, line, SIZE, SIZE))
    front.putalpha(alpha.filter(ImageFilter.BoxBlur(4)))
    return Backdrop(image, ground, front, shadow=False)


def draw_ripples(image: Image.Image, rng: Rng, top: float) -> None:
    """Draw short light strokes on the water below ``top``, a fraction of the height."""
    draw = ImageDraw.Draw(image)
    for y in np.linspace(top * SIZE, SIZE - 6, 10):
        x, length = rng.uniform(-20, SIZE - 20), rng.uniform(40, 80)
        draw.line((x, y, x + length, y), fill=jitter(rng, (150, 208, 240)), width=5)


def milk(rng: Rng) -> Backdrop:
    """Creamy white waves and splashes under a pink sky; the milk covers the lowest part of the objects."""
    image = landscape(rng, ((226, 130, 176), (252, 206, 212)), ((246, 238, 222), (255, 250, 238)), 0.40)
    draw = ImageDraw.Draw(image)
    for row, y in enumerate(np.linspace(0.40, 0.94, 7) * SIZE):
        draw_milk_wave(draw, rng, y, 30 + 6 * row)
    ground = rng.uniform(0.80, 0.90)
    line = (ground - 0.07) * SIZE
    front = image.convert("RGBA")
    alpha = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(alpha).rectangle((0, line, SIZE, SIZE), fill=236)
    front.putalpha(alpha.filter(ImageFilter.BoxBlur(3)))
    splash = ImageDraw.Draw(front)
    for x in np.linspace(16, SIZE - 16, 7) + rng.uniform(-9, 9, 7):
        draw_milk_drop(splash, x, line - rng.uniform(4, 60) * abs(x - SIZE / 2) / SIZE * 2, rng.uniform(4, 8))
    return Backdrop(image, ground, front, shadow=False)


def draw_milk_wave(draw: ImageDraw.ImageDraw, rng: Rng, y: float, length: float) -> None:
    """Draw a row of round crests at height ``y``, each with a cream shadow."""
    for x in np.arange(-rng.uniform(0, length), SIZE + length, length):
        blob(draw, x, y + 4, length * 0.56, 12, (216, 198, 176))
        blob(draw, x, y + 9, length * 0.60, 13, jitter(rng, (255, 251, 240), 3))


def draw_milk_drop(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """Draw a drop with a shaded rim."""
    blob(draw, x, y, radius + 1.5, radius + 1.5, (214, 196, 176))
    blob(draw, x - 0.5, y - 1, radius, radius, (255, 253, 246))
