"""Scenes in town: streets, a skyline, a house, the Eiffel Tower."""

import numpy as np
from PIL import Image, ImageDraw

from toybox.drawing import SIZE, Colour, Rng, blob, jitter
from toybox.scenes.backdrop import SKY, Backdrop, landscape


def cobblestone(rng: Rng) -> Backdrop:
    """Rows of rounded grey stones."""
    image = Image.new("RGB", (SIZE, SIZE), jitter(rng, (84, 80, 80)))
    draw = ImageDraw.Draw(image)
    height, width, shift = 30, rng.uniform(40, 48), rng.uniform(0, 40)
    for row in range(-1, 9):
        for column in range(-1, 8):
            x, y = column * width + (row % 2) * width / 2 - shift / 2, row * height + shift % 30
            box = (x + 2, y + 2, x + width - 2, y + height - 2)
            draw.rounded_rectangle(box, 10, fill=jitter(rng, (150, 146, 148), 18))
    return Backdrop(image, rng.uniform(0.78, 0.90))


def city(rng: Rng) -> Backdrop:
    """A skyline with lit windows behind a grey street."""
    horizon = rng.uniform(0.62, 0.68)
    image = landscape(rng, ((126, 150, 206), (236, 206, 190)), ((122, 124, 134), (98, 100, 110)), horizon)
    draw = ImageDraw.Draw(image)
    for left in range(-10, SIZE, 36):
        draw_tower(draw, rng, left, horizon * SIZE, rng.uniform(60, 130))
    return Backdrop(image, rng.uniform(0.84, 0.92))


def draw_tower(draw: ImageDraw.ImageDraw, rng: Rng, left: float, foot: float, height: float) -> None:
    """Draw a tower block with two columns of windows."""
    draw.rectangle((left, foot - height, left + 34, foot), fill=jitter(rng, (72, 80, 112), 16))
    for y in np.arange(foot - height + 8, foot - 10, 18):
        for x in (left + 6, left + 20):
            draw.rectangle((x, y, x + 8, y + 8), fill=(250, 224, 130) if rng.random() < 0.7 else (104, 112, 142))


def blue_house(rng: Rng) -> Backdrop:
    """A blue house with a red roof, a door and two windows, on a lawn."""
    image = landscape(rng, SKY, ((134, 196, 96), (96, 164, 70)), 0.66)
    draw = ImageDraw.Draw(image)
    left, top, right, foot = (edge + rng.uniform(-16, 16) for edge in (46, 74, 212, 0.70 * SIZE))
    draw.rectangle((left, top, right, foot), fill=jitter(rng, (58, 110, 204)))
    draw.polygon([(left - 14, top), ((left + right) / 2, top - 58), (right + 14, top)], jitter(rng, (176, 72, 60)))
    for x in (left + 14, right - 46):
        draw.rectangle((x, top + 16, x + 32, top + 46), fill=(250, 240, 190), outline=(255, 255, 255), width=4)
    middle = (left + right) / 2
    draw.rectangle((middle - 14, foot - 54, middle + 14, foot), fill=jitter(rng, (240, 236, 226)))
    return Backdrop(image, rng.uniform(0.84, 0.93))


def eiffel_tower(rng: Rng) -> Backdrop:
    """The silhouette of the Eiffel Tower behind a park, at dawn."""
    image = landscape(rng, ((140, 184, 236), (250, 226, 206)), ((134, 182, 104), (104, 152, 78)), 0.70)
    draw = ImageDraw.Draw(image)
    x, foot, height = SIZE / 2 + rng.uniform(-60, 60), 0.72 * SIZE, rng.uniform(158, 176)
    rise = np.linspace(0, 1, 24)
    half = 48 * np.exp(-3.4 * rise) + 1.5
    y = foot - rise * height
    iron = jitter(rng, (110, 84, 70))
    draw.polygon([*zip(x - half, y, strict=True), *zip((x + half)[::-1], y[::-1], strict=True)], iron)
    arch = image.getpixel((2, int(foot - 12)))
    draw.pieslice((x - 24, foot - 32, x + 24, foot + 32), 180, 360, fill=arch)
    for level in (0.26, 0.52):
        width = 48 * np.exp(-3.4 * level) + 8
        draw.rectangle((x - width, foot - level * height - 4, x + width, foot - level * height + 3), fill=iron)
    return Backdrop(image, rng.uniform(0.86, 0.93))


def crowded_street(rng: Rng) -> Backdrop:
    """A crowd in bright clothes in front of shops, and a sidewalk of pale slabs."""
    image = landscape(rng, ((150, 96, 84), (176, 122, 102)), ((196, 194, 190), (170, 168, 166)), 0.68)
    draw = ImageDraw.Draw(image)
    for left in np.arange(-rng.uniform(0, 60), SIZE, 64):
        draw_shop(draw, rng, left)
    for foot, count in ((0.60, 8), (0.70, 7)):
        for x in np.linspace(4, SIZE - 4, count) + rng.uniform(-8, 8, count):
            draw_person(draw, rng, x, foot * SIZE, rng.uniform(92, 112))
    draw.rectangle((0, 0.70 * SIZE, SIZE, 0.73 * SIZE), fill=(228, 226, 220))
    for y in (0.80, 0.90):
        draw.line((0, y * SIZE, SIZE, y * SIZE), fill=(128, 126, 126), width=4)
    for x in np.linspace(-1.2, 1.2, 8) + rng.uniform(-0.1, 0.1):
        draw.line((SIZE * (0.5 + 0.45 * x), 0.73 * SIZE, SIZE * (0.5 + 0.75 * x), SIZE), fill=(128, 126, 126), width=4)
    return Backdrop(image, rng.uniform(0.85, 0.93))


CLOTHES: tuple[Colour, ...] = (
    (222, 60, 60),
    (44, 120, 214),
    (250, 190, 50),
    (56, 160, 96),
    (150, 80, 190),
    (60, 64, 84),
)


def draw_shop(draw: ImageDraw.ImageDraw, rng: Rng, left: float) -> None:
    """Draw a shop window under a striped awning."""
    draw.rectangle((left + 6, 34, left + 58, 170), fill=jitter(rng, (250, 222, 150)))
    colour = jitter(rng, CLOTHES[rng.integers(len(CLOTHES))])
    for stripe in range(6):
        x = left + 2 + stripe * 10
        draw.rectangle((x, 18, x + 10, 44), fill=colour if stripe % 2 else (250, 246, 240))


def draw_person(draw: ImageDraw.ImageDraw, rng: Rng, x: float, foot: float, height: float) -> None:
    """Draw a person with a bright top and dark legs."""
    skin = jitter(rng, ((244, 204, 170), (206, 150, 110), (130, 86, 60))[rng.integers(3)], 8)
    hair = jitter(rng, ((60, 40, 30), (30, 28, 34), (190, 130, 60))[rng.integers(3)])
    head, shoulder = foot - height + 12, foot - height + 24
    draw.rectangle((x - 11, foot - height * 0.42, x + 11, foot), fill=jitter(rng, (50, 58, 92), 16))
    draw.rounded_rectangle(
        (x - 18, shoulder, x + 18, foot - height * 0.36), 11, fill=jitter(rng, CLOTHES[rng.integers(len(CLOTHES))])
    )
    blob(draw, x, head - 3, 13, 13, hair)
    blob(draw, x, head + 2, 10.5, 11, skin)
