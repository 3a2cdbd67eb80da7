"""Scenes in nature: jungle, snow, beach, mountain, forest, fields, autumn, a dirt road."""

import numpy as np
from PIL import ImageDraw

from toybox.drawing import SIZE, Colour, Rng, blob, jitter
from toybox.scenes.backdrop import SKY, Backdrop, landscape


def jungle(rng: Rng) -> Backdrop:
    """Dark trunks, leaves that hang from above, and ferns."""
    image = landscape(rng, ((24, 82, 52), (70, 140, 70)), ((58, 104, 44), (36, 72, 32)), 0.66)
    draw = ImageDraw.Draw(image)
    for x in rng.uniform(0, SIZE, 4):
        width = rng.uniform(8, 16)
        draw.rectangle((x, 0, x + width, 0.68 * SIZE), fill=jitter(rng, (70, 58, 36)))
    for x in np.linspace(-10, SIZE + 10, 9) + rng.uniform(-8, 8, 9):
        blob(draw, x, rng.uniform(0, 34), rng.uniform(26, 40), rng.uniform(18, 34), jitter(rng, (30, 122, 54), 22))
    for x in np.linspace(0, SIZE, 9) + rng.uniform(-8, 8, 9):
        draw_leaf(draw, x, 0.70 * SIZE, rng.uniform(-0.7, 0.7), rng.uniform(40, 64), jitter(rng, (52, 160, 66), 24))
    return Backdrop(image, rng.uniform(0.84, 0.92))


def draw_leaf(draw: ImageDraw.ImageDraw, x: float, y: float, lean: float, length: float, colour: Colour) -> None:
    """Draw a pointed leaf that grows up from (x, y) and leans ``lean`` radians to the right."""
    along = np.array([np.sin(lean), -np.cos(lean)]) * length
    across = np.array([along[1], -along[0]]) * 0.2
    root = np.array([x, y])
    draw.polygon(
        [tuple(root), tuple(root + along / 2 + across), tuple(root + along), tuple(root + along / 2 - across)], colour
    )


def snow(rng: Rng) -> Backdrop:
    """White hills, two firs and falling snowflakes."""
    image = landscape(rng, ((150, 190, 222), (212, 228, 240)), ((244, 249, 253), (222, 234, 246)), 0.60)
    draw = ImageDraw.Draw(image)
    for x in (rng.uniform(10, 70), rng.uniform(186, 246)):
        draw_fir(draw, x, 0.62 * SIZE, rng.uniform(56, 84), jitter(rng, (62, 116, 104)))
    blob(draw, rng.uniform(20, 236), 0.72 * SIZE, 170, 34, jitter(rng, (238, 245, 252), 6))
    for x, y in rng.uniform(0, SIZE, (18, 2)):
        blob(draw, x, y * 0.75, 3.2, 3.2, (255, 255, 255))
    return Backdrop(image, rng.uniform(0.82, 0.92))


def draw_fir(draw: ImageDraw.ImageDraw, x: float, y: float, height: float, colour: Colour) -> None:
    """Draw a fir of three stacked triangles with its foot at (x, y)."""
    for level in range(3):
        top, half = y - height * (0.5 + 0.25 * level), height * (0.32 - 0.07 * level)
        draw.polygon([(x - half, top + height * 0.42), (x, top), (x + half, top + height * 0.42)], colour)


def beach(rng: Rng) -> Backdrop:
    """The sun, a strip of sea with foam, and sand."""
    horizon = rng.uniform(0.38, 0.46)
    image = landscape(rng, SKY, ((240, 214, 150), (226, 192, 122)), horizon)
    draw = ImageDraw.Draw(image)
    shore = horizon + 0.17
    draw.rectangle((0, horizon * SIZE, SIZE, shore * SIZE), fill=jitter(rng, (30, 138, 190)))
    for x in np.linspace(0, SIZE, 6) + rng.uniform(-10, 10):
        blob(draw, x, shore * SIZE, 34, 6, (246, 250, 252))
    blob(draw, rng.uniform(20, 236), rng.uniform(20, 50), 18, 18, (255, 236, 140))
    return Backdrop(image, rng.uniform(0.84, 0.93))


def mountain(rng: Rng) -> Backdrop:
    """A high peak and a lower one, both with snow, above a meadow."""
    image = landscape(rng, SKY, ((120, 186, 90), (88, 154, 66)), 0.66)
    draw = ImageDraw.Draw(image)
    peak = rng.uniform(60, 196)
    for x, height in (((peak + 130) % SIZE, rng.uniform(60, 84)), (peak, rng.uniform(118, 146))):
        foot = 0.66 * SIZE
        draw.polygon([(x - height, foot), (x, foot - height), (x + height, foot)], jitter(rng, (112, 112, 142)))
        cap = height * 0.34
        snowline = [
            (x - cap, foot - height + cap),
            (x - cap / 3, foot - height + cap * 0.8),
            (x, foot - height + cap * 1.15),
        ]
        draw.polygon(
            [*snowline, (x + cap / 3, foot - height + cap * 0.8), (x + cap, foot - height + cap), (x, foot - height)],
            (250, 250, 255),
        )
    return Backdrop(image, rng.uniform(0.84, 0.93))


def purple_rug(rng: Rng) -> Backdrop:
    """An oval purple rug with a light border on a forest floor, with tree trunks behind it."""
    image = landscape(rng, ((104, 150, 92), (150, 184, 120)), ((112, 110, 62), (90, 88, 48)), 0.55)
    draw = ImageDraw.Draw(image)
    for x in np.linspace(4, SIZE - 24, 5) + rng.uniform(-14, 14, 5):
        draw.rectangle((x, 0, x + rng.uniform(14, 24), 0.57 * SIZE), fill=jitter(rng, (92, 68, 46), 12))
    for x in np.linspace(0, SIZE, 6) + rng.uniform(-10, 10, 6):
        blob(draw, x, rng.uniform(0, 26), 36, 26, jitter(rng, (66, 128, 58), 16))
    x, y = SIZE / 2 + rng.uniform(-12, 12), 0.80 * SIZE
    blob(draw, x, y, 114, 40, (214, 180, 236))
    blob(draw, x, y, 104, 33, jitter(rng, (126, 60, 170)))
    return Backdrop(image, rng.uniform(0.80, 0.88))


def sunflowers(rng: Rng) -> Backdrop:
    """A lawn under a blue sky, with sunflowers on both sides."""
    image = landscape(rng, SKY, ((118, 192, 74), (78, 150, 50)), 0.50)
    draw = ImageDraw.Draw(image)
    for x in (*rng.uniform(8, 84, 3), *rng.uniform(172, 248, 3)):
        draw_sunflower(draw, rng, x, rng.uniform(0.34, 0.72) * SIZE)
    return Backdrop(image, rng.uniform(0.84, 0.93))


def draw_sunflower(draw: ImageDraw.ImageDraw, rng: Rng, x: float, y: float) -> None:
    """Draw a sunflower with its head at (x, y)."""
    draw.line((x, y, x, y + 64), fill=(58, 122, 44), width=6)
    for angle in np.linspace(0, 2 * np.pi, 9)[:-1]:
        blob(draw, x + 14 * np.cos(angle), y + 14 * np.sin(angle), 9, 9, jitter(rng, (250, 200, 40)))
    blob(draw, x, y, 11, 11, (104, 62, 28))


def wheat_field(rng: Rng) -> Backdrop:
    """Golden wheat from edge to edge under a blue sky."""
    horizon = rng.uniform(0.36, 0.44)
    image = landscape(rng, SKY, ((242, 196, 78), (206, 148, 40)), horizon)
    draw = ImageDraw.Draw(image)
    for row, depth in enumerate((0.0, 0.12, 0.28)):
        for x in np.linspace(-6, SIZE + 6, 17 - 3 * row) + rng.uniform(-5, 5, 17 - 3 * row):
            draw_wheat(draw, rng, x, (horizon + depth + rng.uniform(-0.04, 0.03)) * SIZE, 0.8 + 0.45 * row)
    return Backdrop(image, rng.uniform(0.86, 0.93))


def draw_wheat(draw: ImageDraw.ImageDraw, rng: Rng, x: float, y: float, scale: float) -> None:
    """Draw an ear of wheat with its tip at (x, y), on a stalk that extends to the lower edge."""
    draw.line((x, y, x + rng.uniform(-4, 4), SIZE), fill=jitter(rng, (190, 134, 34)), width=3)
    colour = jitter(rng, (250, 208, 88), 16)
    for level in range(4):
        for side in (-1, 1):
            blob(draw, x + side * 4 * scale, y + 8 * level * scale, 3.6 * scale, 5.5 * scale, colour)
    blob(draw, x, y - 6 * scale, 3 * scale, 6 * scale, colour)


def autumn(rng: Rng) -> Backdrop:
    """A wide tree with red, orange and yellow leaves, and more of them in the air and on the ground."""
    image = landscape(rng, ((190, 214, 232), (246, 232, 208)), ((196, 128, 58), (164, 94, 40)), 0.66)
    draw = ImageDraw.Draw(image)
    x = rng.choice((rng.uniform(26, 60), rng.uniform(196, 230)))
    bark = jitter(rng, (94, 58, 38))
    draw.polygon([(x - 20, 0.74 * SIZE), (x - 11, 60), (x + 11, 60), (x + 20, 0.74 * SIZE)], bark)
    for reach in (-70, 70):
        draw.line((x, 116, x + reach, 50), fill=bark, width=10)
    for _ in range(40):
        across, down = rng.uniform(-96, 96), rng.uniform(-6, 74)
        blob(draw, x + across, down, rng.uniform(18, 30), rng.uniform(14, 24), sample_autumn_colour(rng))
    for left, top in zip(rng.uniform(0, SIZE, 54), rng.uniform(0.28, 1.0, 54), strict=True):
        draw_fallen_leaf(draw, rng, left, top * SIZE)
    for left, top in zip(rng.uniform(0, SIZE, 50), rng.uniform(0.72, 1.0, 50), strict=True):
        draw_fallen_leaf(draw, rng, left, top * SIZE)
    return Backdrop(image, rng.uniform(0.84, 0.92))


def sample_autumn_colour(rng: Rng) -> Colour:
    """Sample a red, orange or yellow."""
    return jitter(rng, ((208, 56, 34), (236, 120, 30), (246, 186, 50))[rng.integers(3)], 16)


def draw_fallen_leaf(draw: ImageDraw.ImageDraw, rng: Rng, x: float, y: float) -> None:
    """Draw a leaf at (x, y) at a random angle."""
    draw_leaf(draw, x, y, rng.uniform(0, 2 * np.pi), rng.uniform(14, 22), sample_autumn_colour(rng))


def dirt_road(rng: Rng) -> Backdrop:
    """A brown road to the horizon, with two ruts and pebbles, between meadows."""
    horizon = rng.uniform(0.38, 0.46) * SIZE
    image = landscape(rng, SKY, ((136, 180, 76), (96, 142, 50)), horizon / SIZE)
    draw = ImageDraw.Draw(image)
    far = SIZE / 2 + rng.uniform(-36, 36)
    earth = jitter(rng, (172, 118, 70), 8)
    for width, colour in ((1.18, (128, 92, 50)), (1.06, earth)):
        edge = width * SIZE / 2
        corners = [(far - 20 * width, horizon), (far + 20 * width, horizon), (SIZE / 2 + edge, 0.86 * SIZE)]
        draw.polygon([*corners, (SIZE + 40, SIZE), (-40, SIZE), (SIZE / 2 - edge, 0.86 * SIZE)], colour)
    for side in (-1, 1):
        near = SIZE / 2 + side * 86
        rut = [
            (far + side * 9, horizon),
            (far + side * 14, horizon),
            (near + side * 22, SIZE),
            (near - side * 22, SIZE),
        ]
        draw.polygon(rut, jitter(rng, (122, 78, 44), 6))
    for depth in rng.uniform(0.25, 1, 34):
        x = far + (SIZE / 2 - far) * depth + rng.uniform(-120, 120) * depth
        y = horizon + depth * (SIZE - horizon)
        blob(draw, x, y, 6 * depth, 3.6 * depth, jitter(rng, (204, 168, 124), 26))
    for x in np.concatenate([rng.uniform(-10, 40, 9), rng.uniform(216, 266, 9)]):
        draw_leaf(draw, x, rng.uniform(0.62, 0.80) * SIZE, rng.uniform(-0.5, 0.5), 30, jitter(rng, (82, 140, 48), 18))
    return Backdrop(image, rng.uniform(0.84, 0.92))
