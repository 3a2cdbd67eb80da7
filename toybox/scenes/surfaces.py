"""Scenes indoors: fabric, floors, a mirror, a rug, and plain backgrounds."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from toybox.drawing import SIZE, Colour, Rng, blob, gradient, jitter
from toybox.scenes.backdrop import Backdrop, landscape


def fabric(rng: Rng) -> Backdrop:
    """Pink cloth with soft folds."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    angle = rng.uniform(-0.6, 0.6)
    along = x * np.cos(angle) + y * np.sin(angle)
    folds = np.sin(
        2 * np.pi * (along * rng.uniform(2.2, 3.2) + 0.12 * np.sin(6 * y + rng.uniform(0, 6)) + rng.random())
    )
    shade = 1 + 0.10 * folds[..., None]
    return Backdrop(
        Image.fromarray(np.clip(shade * jitter(rng, (238, 150, 186)), 0, 255).astype(np.uint8)), rng.uniform(0.76, 0.9)
    )


def wooden_floor(rng: Rng) -> Backdrop:
    """Brown planks of different shades with dark seams."""
    image = Image.new("RGB", (SIZE, SIZE))
    draw = ImageDraw.Draw(image)
    start = rng.uniform(-36, 0)
    for row in range(9):
        top = start + row * 36
        draw.rectangle((0, top, SIZE, top + 36), fill=jitter(rng, (176, 118, 66), 14))
        draw.line((0, top, SIZE, top), fill=(112, 70, 36), width=4)
        seam = rng.uniform(0, SIZE)
        draw.line((seam, top, seam, top + 36), fill=(112, 70, 36), width=4)
    return Backdrop(image, rng.uniform(0.78, 0.9))


def mirror(rng: Rng) -> Backdrop:
    """A mirror with a golden frame and bright streaks, lying on a dark table."""
    image = landscape(rng, ((52, 74, 84), (74, 100, 108)), ((70, 44, 44), (46, 28, 32)), 0.36)
    top, foot, slant = 0.44 * SIZE, SIZE - 10, rng.uniform(30, 40)
    frame = [(slant, top), (SIZE - slant, top), (SIZE - 4, foot), (4, foot)]
    glass_box = [(slant + 9, top + 9), (SIZE - slant - 9, top + 9), (SIZE - 19, foot - 13), (19, foot - 13)]
    draw = ImageDraw.Draw(image)
    draw.polygon([(x, y + 7) for x, y in frame], (122, 84, 20))
    draw.polygon(frame, jitter(rng, (236, 184, 66)))
    glass = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(glass).polygon(glass_box, 255)
    silver = gradient(jitter(rng, (150, 190, 212), 8), (226, 240, 248))
    streaks = ImageDraw.Draw(silver)
    for x in rng.uniform(-20, SIZE + 60, 4):
        width = rng.uniform(8, 22)
        streaks.polygon([(x, 0), (x + width, 0), (x + width - 150, SIZE), (x - 150, SIZE)], (246, 251, 255))
    image.paste(silver, (0, 0), glass)
    reflecting = glass.point([value * 5 // 8 for value in range(256)])
    return Backdrop(image, rng.uniform(0.72, 0.78), shadow=False, mirror=reflecting)


def white_rug(rng: Rng) -> Backdrop:
    """A fluffy white rug on a dark teal floor, with a baseboard and a warm-coloured wall behind it."""
    image = landscape(rng, ((238, 204, 170), (226, 188, 152)), ((52, 96, 104), (38, 74, 84)), 0.36)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0.33 * SIZE, SIZE, 0.37 * SIZE), fill=(250, 244, 236))
    x, y = SIZE / 2 + rng.uniform(-8, 8), 0.74 * SIZE
    for radius_x, radius_y, tufts, colour in ((122, 62, 56, (206, 204, 206)), (114, 55, 48, (238, 236, 234))):
        blob(draw, x, y, radius_x, radius_y, colour)
        for angle in np.linspace(0, 2 * np.pi, tufts):
            blob(draw, x + radius_x * np.cos(angle), y + radius_y * np.sin(angle), 8, 6, jitter(rng, colour, 4))
    for angle, reach in zip(rng.uniform(0, 2 * np.pi, 90), np.sqrt(rng.uniform(0, 1, 90)), strict=True):
        left, top = x + 112 * reach * np.cos(angle), y + 52 * reach * np.sin(angle)
        draw.arc((left - 10, top - 6, left + 10, top + 8), 200, 330, fill=(208, 206, 210), width=3)
        draw.arc((left - 10, top - 2, left + 10, top + 12), 200, 330, fill=(255, 255, 255), width=5)
    return Backdrop(image, rng.uniform(0.80, 0.90))


def plain(colour: Colour) -> Callable[[Rng], Backdrop]:
    """Return a function that draws a background of one colour, lighter in the centre."""

    def draw(rng: Rng) -> Backdrop:
        flat = Image.new("RGB", (SIZE, SIZE), jitter(rng, colour))
        glow = Image.radial_gradient("L").point([max(0, 24 - distance // 6) for distance in range(256)])
        return Backdrop(ImageChops.add(flat, Image.merge("RGB", (glow,) * 3)), rng.uniform(0.80, 0.90))

    return draw
