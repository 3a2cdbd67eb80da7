"""Scenes: the places of the toy world, drawn from a random generator, phrased as the DreamBooth benchmark prompts are.

A scene is drawn at twice the picture's size and reduced later, which smooths every edge. Each drawing function is
registered under its caption phrase and gives a `Backdrop`; two equal generators give two equal backdrops.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE = 256
"""Side of a backdrop in pixels: twice the side of a finished picture."""

Rng = np.random.Generator
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Backdrop:
    """A drawn place: its RGB picture, the height (0 top, 1 bottom) things stand at, and what lies in front of them.

    `mirror` (L, SIZE square) says how strongly each point of the picture reflects what stands above the ground line.
    """

    image: Image.Image
    ground: float
    front: Image.Image | None = None
    shadow: bool = True
    mirror: Image.Image | None = None


@dataclass(frozen=True)
class Scene:
    """A kind of place: the phrase that names it in captions, how to draw it, and how often it is met."""

    phrase: str
    draw: Callable[[Rng], Backdrop]
    weight: float = 1.0


SCENES: dict[str, Scene] = {}


def scene(phrase: str, weight: float = 1.0) -> Callable[[Callable[[Rng], Backdrop]], Callable[[Rng], Backdrop]]:
    """Register a drawing function as the scene that captions call `phrase`."""

    def register(draw: Callable[[Rng], Backdrop]) -> Callable[[Rng], Backdrop]:
        SCENES[phrase] = Scene(phrase, draw, weight)
        return draw

    return register


def jitter(rng: Rng, colour: Colour, amount: int = 12) -> Colour:
    """`colour` moved by up to `amount` a channel, the three channels mostly together."""
    moved = np.array(colour) + rng.integers(-amount, amount + 1) + rng.integers(-amount // 3, amount // 3 + 1, 3)
    return tuple(int(channel) for channel in np.clip(moved, 0, 255))  # type: ignore[return-value]


def gradient(top: Colour, bottom: Colour, height: int = SIZE) -> Image.Image:
    """A vertical gradient, SIZE wide."""
    ramp = np.linspace(top, bottom, max(height, 1))[:, None, :].round().astype(np.uint8)
    return Image.fromarray(ramp).resize((SIZE, max(height, 1)), Image.Resampling.NEAREST)


def land(rng: Rng, sky: tuple[Colour, Colour], ground: tuple[Colour, Colour], horizon: float) -> Image.Image:
    """Sky above, ground below, each a gradient; `horizon` is its height as a fraction of the picture."""
    line = round(horizon * SIZE)
    picture = gradient(jitter(rng, sky[0]), jitter(rng, sky[1]))
    picture.paste(gradient(jitter(rng, ground[0]), jitter(rng, ground[1]), SIZE - line), (0, line))
    return picture


def blob(draw: ImageDraw.ImageDraw, x: float, y: float, radius_x: float, radius_y: float, colour: Colour) -> None:
    """An ellipse about (x, y), all in backdrop pixels."""
    draw.ellipse((x - radius_x, y - radius_y, x + radius_x, y + radius_y), fill=colour)


SKY: tuple[Colour, Colour] = ((92, 170, 240), (205, 232, 250))


@scene("in the jungle")
def jungle(rng: Rng) -> Backdrop:
    """Dark trunks, and leaves hanging in from above and the sides."""
    picture = land(rng, ((24, 82, 52), (70, 140, 70)), ((58, 104, 44), (36, 72, 32)), 0.66)
    draw = ImageDraw.Draw(picture)
    for x in rng.uniform(0, SIZE, 4):
        width = rng.uniform(8, 16)
        draw.rectangle((x, 0, x + width, 0.68 * SIZE), fill=jitter(rng, (70, 58, 36)))
    for x in np.linspace(-10, SIZE + 10, 9) + rng.uniform(-8, 8, 9):
        blob(draw, x, rng.uniform(0, 34), rng.uniform(26, 40), rng.uniform(18, 34), jitter(rng, (30, 122, 54), 22))
    for x in np.linspace(0, SIZE, 9) + rng.uniform(-8, 8, 9):
        leaf(draw, x, 0.70 * SIZE, rng.uniform(-0.7, 0.7), rng.uniform(40, 64), jitter(rng, (52, 160, 66), 24))
    return Backdrop(picture, rng.uniform(0.84, 0.92))


def leaf(draw: ImageDraw.ImageDraw, x: float, y: float, lean: float, length: float, colour: Colour) -> None:
    """A pointed leaf growing up from (x, y); `lean` is the angle from upright in radians."""
    along = np.array([np.sin(lean), -np.cos(lean)]) * length
    across = np.array([along[1], -along[0]]) * 0.2
    root = np.array([x, y])
    draw.polygon(
        [tuple(root), tuple(root + along / 2 + across), tuple(root + along), tuple(root + along / 2 - across)], colour
    )


@scene("in the snow")
def snow(rng: Rng) -> Backdrop:
    """White hills, two firs and falling flakes."""
    picture = land(rng, ((150, 190, 222), (212, 228, 240)), ((244, 249, 253), (222, 234, 246)), 0.60)
    draw = ImageDraw.Draw(picture)
    for x in (rng.uniform(10, 70), rng.uniform(186, 246)):
        fir(draw, x, 0.62 * SIZE, rng.uniform(56, 84), jitter(rng, (62, 116, 104)))
    blob(draw, rng.uniform(20, 236), 0.72 * SIZE, 170, 34, jitter(rng, (238, 245, 252), 6))
    for x, y in rng.uniform(0, SIZE, (18, 2)):
        blob(draw, x, y * 0.75, 3.2, 3.2, (255, 255, 255))
    return Backdrop(picture, rng.uniform(0.82, 0.92))


def fir(draw: ImageDraw.ImageDraw, x: float, y: float, height: float, colour: Colour) -> None:
    """A fir of three stacked triangles standing at (x, y)."""
    for level in range(3):
        top, half = y - height * (0.5 + 0.25 * level), height * (0.32 - 0.07 * level)
        draw.polygon([(x - half, top + height * 0.42), (x, top), (x + half, top + height * 0.42)], colour)


@scene("on the beach")
def beach(rng: Rng) -> Backdrop:
    """Sky, a strip of sea with foam, and sand; sometimes the sun."""
    horizon = rng.uniform(0.38, 0.46)
    picture = land(rng, SKY, ((240, 214, 150), (226, 192, 122)), horizon)
    draw = ImageDraw.Draw(picture)
    shore = horizon + 0.17
    draw.rectangle((0, horizon * SIZE, SIZE, shore * SIZE), fill=jitter(rng, (30, 138, 190)))
    for x in np.linspace(0, SIZE, 6) + rng.uniform(-10, 10):
        blob(draw, x, shore * SIZE, 34, 6, (246, 250, 252))
    blob(draw, rng.uniform(20, 236), rng.uniform(20, 50), 18, 18, (255, 236, 140))
    return Backdrop(picture, rng.uniform(0.84, 0.93))


@scene("on a cobblestone street")
def cobblestone(rng: Rng) -> Backdrop:
    """Rows of rounded grey stones from edge to edge."""
    picture = Image.new("RGB", (SIZE, SIZE), jitter(rng, (84, 80, 80)))
    draw = ImageDraw.Draw(picture)
    height, width, shift = 30, rng.uniform(40, 48), rng.uniform(0, 40)
    for row in range(-1, 9):
        for column in range(-1, 8):
            x, y = column * width + (row % 2) * width / 2 - shift / 2, row * height + shift % 30
            box = (x + 2, y + 2, x + width - 2, y + height - 2)
            draw.rounded_rectangle(box, 10, fill=jitter(rng, (150, 146, 148), 18))
    return Backdrop(picture, rng.uniform(0.78, 0.90))


@scene("on top of pink fabric")
def fabric(rng: Rng) -> Backdrop:
    """Pink cloth with soft folds running across it."""
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


@scene("on top of a wooden floor")
def wooden_floor(rng: Rng) -> Backdrop:
    """Brown planks with dark seams, each of its own shade."""
    picture = Image.new("RGB", (SIZE, SIZE))
    draw = ImageDraw.Draw(picture)
    start = rng.uniform(-36, 0)
    for row in range(9):
        top = start + row * 36
        draw.rectangle((0, top, SIZE, top + 36), fill=jitter(rng, (176, 118, 66), 14))
        draw.line((0, top, SIZE, top), fill=(112, 70, 36), width=4)
        seam = rng.uniform(0, SIZE)
        draw.line((seam, top, seam, top + 36), fill=(112, 70, 36), width=4)
    return Backdrop(picture, rng.uniform(0.78, 0.9))


@scene("with a city in the background")
def city(rng: Rng) -> Backdrop:
    """A skyline with lit windows above a grey street."""
    horizon = rng.uniform(0.62, 0.68)
    picture = land(rng, ((126, 150, 206), (236, 206, 190)), ((122, 124, 134), (98, 100, 110)), horizon)
    draw = ImageDraw.Draw(picture)
    for left in range(-10, SIZE, 36):
        tower(draw, rng, left, horizon * SIZE, rng.uniform(60, 130))
    return Backdrop(picture, rng.uniform(0.84, 0.92))


def tower(draw: ImageDraw.ImageDraw, rng: Rng, left: float, foot: float, height: float) -> None:
    """One block of flats with two columns of windows."""
    draw.rectangle((left, foot - height, left + 34, foot), fill=jitter(rng, (72, 80, 112), 16))
    for y in np.arange(foot - height + 8, foot - 10, 18):
        for x in (left + 6, left + 20):
            draw.rectangle((x, y, x + 8, y + 8), fill=(250, 224, 130) if rng.random() < 0.7 else (104, 112, 142))


@scene("with a mountain in the background")
def mountain(rng: Rng) -> Backdrop:
    """One high peak with a white cap, a lower one beside it, and a meadow."""
    picture = land(rng, SKY, ((120, 186, 90), (88, 154, 66)), 0.66)
    draw = ImageDraw.Draw(picture)
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
    return Backdrop(picture, rng.uniform(0.84, 0.93))


@scene("with a blue house in the background")
def blue_house(rng: Rng) -> Backdrop:
    """A blue house with a red roof, a door and two windows, on a lawn."""
    picture = land(rng, SKY, ((134, 196, 96), (96, 164, 70)), 0.66)
    draw = ImageDraw.Draw(picture)
    left, top, right, foot = (edge + rng.uniform(-16, 16) for edge in (46, 74, 212, 0.70 * SIZE))
    draw.rectangle((left, top, right, foot), fill=jitter(rng, (58, 110, 204)))
    draw.polygon([(left - 14, top), ((left + right) / 2, top - 58), (right + 14, top)], jitter(rng, (176, 72, 60)))
    for x in (left + 14, right - 46):
        draw.rectangle((x, top + 16, x + 32, top + 46), fill=(250, 240, 190), outline=(255, 255, 255), width=4)
    middle = (left + right) / 2
    draw.rectangle((middle - 14, foot - 54, middle + 14, foot), fill=jitter(rng, (240, 236, 226)))
    return Backdrop(picture, rng.uniform(0.84, 0.93))


@scene("on top of a purple rug in a forest")
def purple_rug(rng: Rng) -> Backdrop:
    """Tree trunks behind, and an oval purple rug with a light border on the forest floor."""
    picture = land(rng, ((104, 150, 92), (150, 184, 120)), ((112, 110, 62), (90, 88, 48)), 0.55)
    draw = ImageDraw.Draw(picture)
    for x in np.linspace(4, SIZE - 24, 5) + rng.uniform(-14, 14, 5):
        draw.rectangle((x, 0, x + rng.uniform(14, 24), 0.57 * SIZE), fill=jitter(rng, (92, 68, 46), 12))
    for x in np.linspace(0, SIZE, 6) + rng.uniform(-10, 10, 6):
        blob(draw, x, rng.uniform(0, 26), 36, 26, jitter(rng, (66, 128, 58), 16))
    x, y = SIZE / 2 + rng.uniform(-12, 12), 0.80 * SIZE
    blob(draw, x, y, 114, 40, (214, 180, 236))
    blob(draw, x, y, 104, 33, jitter(rng, (126, 60, 170)))
    return Backdrop(picture, rng.uniform(0.80, 0.88))


@scene("on top of green grass with sunflowers around it")
def sunflowers(rng: Rng) -> Backdrop:
    """A lawn under a blue sky with sunflowers at both sides."""
    picture = land(rng, SKY, ((118, 192, 74), (78, 150, 50)), 0.50)
    draw = ImageDraw.Draw(picture)
    for x in (*rng.uniform(8, 84, 3), *rng.uniform(172, 248, 3)):
        sunflower(draw, rng, x, rng.uniform(0.34, 0.72) * SIZE)
    return Backdrop(picture, rng.uniform(0.84, 0.93))


def sunflower(draw: ImageDraw.ImageDraw, rng: Rng, x: float, y: float) -> None:
    """A flower head at (x, y) on a green stalk."""
    draw.line((x, y, x, y + 64), fill=(58, 122, 44), width=6)
    for angle in np.linspace(0, 2 * np.pi, 9)[:-1]:
        blob(draw, x + 14 * np.cos(angle), y + 14 * np.sin(angle), 9, 9, jitter(rng, (250, 200, 40)))
    blob(draw, x, y, 11, 11, (104, 62, 28))


@scene("with the Eiffel Tower in the background")
def eiffel_tower(rng: Rng) -> Backdrop:
    """The tower's curved silhouette over a park, at dawn."""
    picture = land(rng, ((140, 184, 236), (250, 226, 206)), ((134, 182, 104), (104, 152, 78)), 0.70)
    draw = ImageDraw.Draw(picture)
    x, foot, height = SIZE / 2 + rng.uniform(-60, 60), 0.72 * SIZE, rng.uniform(158, 176)
    rise = np.linspace(0, 1, 24)
    half = 48 * np.exp(-3.4 * rise) + 1.5
    y = foot - rise * height
    iron = jitter(rng, (110, 84, 70))
    draw.polygon([*zip(x - half, y, strict=True), *zip((x + half)[::-1], y[::-1], strict=True)], iron)
    arch = picture.getpixel((2, int(foot - 12)))
    draw.pieslice((x - 24, foot - 32, x + 24, foot + 32), 180, 360, fill=arch)
    for level in (0.26, 0.52):
        width = 48 * np.exp(-3.4 * level) + 8
        draw.rectangle((x - width, foot - level * height - 4, x + width, foot - level * height + 3), fill=iron)
    return Backdrop(picture, rng.uniform(0.86, 0.93))


@scene("floating on top of water")
def water(rng: Rng) -> Backdrop:
    """Blue water with light ripples; the lowest part of the thing is under the surface."""
    picture = land(rng, SKY, ((60, 150, 210), (22, 92, 164)), 0.34)
    ripples(picture, rng, 0.38)
    ground = rng.uniform(0.80, 0.90)
    line = round((ground - 0.07) * SIZE)
    front = picture.convert("RGBA")
    alpha = Image.new("L", (SIZE, SIZE))
    alpha.paste(210, (0, line, SIZE, SIZE))
    front.putalpha(alpha.filter(ImageFilter.BoxBlur(4)))
    return Backdrop(picture, ground, front, shadow=False)


def ripples(picture: Image.Image, rng: Rng, top: float) -> None:
    """Short light strokes on the water from `top` (a fraction of the height) down."""
    draw = ImageDraw.Draw(picture)
    for y in np.linspace(top * SIZE, SIZE - 6, 10):
        x, length = rng.uniform(-20, SIZE - 20), rng.uniform(40, 80)
        draw.line((x, y, x + length, y), fill=jitter(rng, (150, 208, 240)), width=5)


@scene("with a wheat field in the background")
def wheat_field(rng: Rng) -> Backdrop:
    """Golden stalks with heavy ears from edge to edge under a blue sky."""
    horizon = rng.uniform(0.36, 0.44)
    picture = land(rng, SKY, ((242, 196, 78), (206, 148, 40)), horizon)
    draw = ImageDraw.Draw(picture)
    for row, depth in enumerate((0.0, 0.12, 0.28)):
        for x in np.linspace(-6, SIZE + 6, 17 - 3 * row) + rng.uniform(-5, 5, 17 - 3 * row):
            wheat(draw, rng, x, (horizon + depth + rng.uniform(-0.04, 0.03)) * SIZE, 0.8 + 0.45 * row)
    return Backdrop(picture, rng.uniform(0.86, 0.93))


def wheat(draw: ImageDraw.ImageDraw, rng: Rng, x: float, y: float, scale: float) -> None:
    """An ear of wheat with its tip at (x, y): pairs of grains on a stalk that reaches down out of the picture."""
    draw.line((x, y, x + rng.uniform(-4, 4), SIZE), fill=jitter(rng, (190, 134, 34)), width=3)
    colour = jitter(rng, (250, 208, 88), 16)
    for level in range(4):
        for side in (-1, 1):
            blob(draw, x + side * 4 * scale, y + 8 * level * scale, 3.6 * scale, 5.5 * scale, colour)
    blob(draw, x, y - 6 * scale, 3 * scale, 6 * scale, colour)


@scene("with a tree and autumn leaves in the background")
def autumn(rng: Rng) -> Backdrop:
    """A broad tree in red, orange and yellow, leaves in the air and thick on the ground."""
    picture = land(rng, ((190, 214, 232), (246, 232, 208)), ((196, 128, 58), (164, 94, 40)), 0.66)
    draw = ImageDraw.Draw(picture)
    x = rng.choice((rng.uniform(26, 60), rng.uniform(196, 230)))
    bark = jitter(rng, (94, 58, 38))
    draw.polygon([(x - 20, 0.74 * SIZE), (x - 11, 60), (x + 11, 60), (x + 20, 0.74 * SIZE)], bark)
    for reach in (-70, 70):
        draw.line((x, 116, x + reach, 50), fill=bark, width=10)
    for _ in range(40):
        across, down = rng.uniform(-96, 96), rng.uniform(-6, 74)
        blob(draw, x + across, down, rng.uniform(18, 30), rng.uniform(14, 24), autumn_colour(rng))
    for left, top in zip(rng.uniform(0, SIZE, 54), rng.uniform(0.28, 1.0, 54), strict=True):
        fallen_leaf(draw, rng, left, top * SIZE)
    for left, top in zip(rng.uniform(0, SIZE, 50), rng.uniform(0.72, 1.0, 50), strict=True):
        fallen_leaf(draw, rng, left, top * SIZE)
    return Backdrop(picture, rng.uniform(0.84, 0.92))


def autumn_colour(rng: Rng) -> Colour:
    """Red, orange or yellow."""
    return jitter(rng, ((208, 56, 34), (236, 120, 30), (246, 186, 50))[rng.integers(3)], 16)


def fallen_leaf(draw: ImageDraw.ImageDraw, rng: Rng, x: float, y: float) -> None:
    """A leaf lying, or flying, at (x, y) at any angle."""
    leaf(draw, x, y, rng.uniform(0, 2 * np.pi), rng.uniform(14, 22), autumn_colour(rng))


@scene("floating in an ocean of milk")
def milk(rng: Rng) -> Backdrop:
    """Creamy white waves under a pink sky, drops leaping up; the lowest part of the thing is under the surface."""
    picture = land(rng, ((226, 130, 176), (252, 206, 212)), ((246, 238, 222), (255, 250, 238)), 0.40)
    draw = ImageDraw.Draw(picture)
    for row, y in enumerate(np.linspace(0.40, 0.94, 7) * SIZE):
        milk_wave(draw, rng, y, 30 + 6 * row)
    ground = rng.uniform(0.80, 0.90)
    line = (ground - 0.07) * SIZE
    front = picture.convert("RGBA")
    alpha = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(alpha).rectangle((0, line, SIZE, SIZE), fill=236)
    front.putalpha(alpha.filter(ImageFilter.BoxBlur(3)))
    splash = ImageDraw.Draw(front)
    for x in np.linspace(16, SIZE - 16, 7) + rng.uniform(-9, 9, 7):
        milk_drop(splash, x, line - rng.uniform(4, 60) * abs(x - SIZE / 2) / SIZE * 2, rng.uniform(4, 8))
    return Backdrop(picture, ground, front, shadow=False)


def milk_wave(draw: ImageDraw.ImageDraw, rng: Rng, y: float, length: float) -> None:
    """One row of round crests along `y`, each with a shade of cream under it."""
    for x in np.arange(-rng.uniform(0, length), SIZE + length, length):
        blob(draw, x, y + 4, length * 0.56, 12, (216, 198, 176))
        blob(draw, x, y + 9, length * 0.60, 13, jitter(rng, (255, 251, 240), 3))


def milk_drop(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """A leaping drop with a shaded rim."""
    blob(draw, x, y, radius + 1.5, radius + 1.5, (214, 196, 176))
    blob(draw, x - 0.5, y - 1, radius, radius, (255, 253, 246))


@scene("on top of a mirror")
def mirror(rng: Rng) -> Backdrop:
    """A mirror in a golden frame lying on a dark table, bright streaks across its glass."""
    picture = land(rng, ((52, 74, 84), (74, 100, 108)), ((70, 44, 44), (46, 28, 32)), 0.36)
    top, foot, slant = 0.44 * SIZE, SIZE - 10, rng.uniform(30, 40)
    frame = [(slant, top), (SIZE - slant, top), (SIZE - 4, foot), (4, foot)]
    glass_box = [(slant + 9, top + 9), (SIZE - slant - 9, top + 9), (SIZE - 19, foot - 13), (19, foot - 13)]
    draw = ImageDraw.Draw(picture)
    draw.polygon([(x, y + 7) for x, y in frame], (122, 84, 20))
    draw.polygon(frame, jitter(rng, (236, 184, 66)))
    glass = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(glass).polygon(glass_box, 255)
    silver = gradient(jitter(rng, (150, 190, 212), 8), (226, 240, 248))
    streaks = ImageDraw.Draw(silver)
    for x in rng.uniform(-20, SIZE + 60, 4):
        width = rng.uniform(8, 22)
        streaks.polygon([(x, 0), (x + width, 0), (x + width - 150, SIZE), (x - 150, SIZE)], (246, 251, 255))
    picture.paste(silver, (0, 0), glass)
    reflecting = glass.point([value * 5 // 8 for value in range(256)])
    return Backdrop(picture, rng.uniform(0.72, 0.78), shadow=False, mirror=reflecting)


@scene("on top of the sidewalk in a crowded street")
def crowded_street(rng: Rng) -> Backdrop:
    """People in bright clothes shoulder to shoulder before shop fronts; pale paving slabs in front."""
    picture = land(rng, ((150, 96, 84), (176, 122, 102)), ((196, 194, 190), (170, 168, 166)), 0.68)
    draw = ImageDraw.Draw(picture)
    for left in np.arange(-rng.uniform(0, 60), SIZE, 64):
        shop(draw, rng, left)
    for foot, count in ((0.60, 8), (0.70, 7)):
        for x in np.linspace(4, SIZE - 4, count) + rng.uniform(-8, 8, count):
            person(draw, rng, x, foot * SIZE, rng.uniform(92, 112))
    draw.rectangle((0, 0.70 * SIZE, SIZE, 0.73 * SIZE), fill=(228, 226, 220))
    for y in (0.80, 0.90):
        draw.line((0, y * SIZE, SIZE, y * SIZE), fill=(128, 126, 126), width=4)
    for x in np.linspace(-1.2, 1.2, 8) + rng.uniform(-0.1, 0.1):
        draw.line((SIZE * (0.5 + 0.45 * x), 0.73 * SIZE, SIZE * (0.5 + 0.75 * x), SIZE), fill=(128, 126, 126), width=4)
    return Backdrop(picture, rng.uniform(0.85, 0.93))


BRIGHT: tuple[Colour, ...] = (
    (222, 60, 60),
    (44, 120, 214),
    (250, 190, 50),
    (56, 160, 96),
    (150, 80, 190),
    (60, 64, 84),
)


def shop(draw: ImageDraw.ImageDraw, rng: Rng, left: float) -> None:
    """A shop window under a striped awning."""
    draw.rectangle((left + 6, 34, left + 58, 170), fill=jitter(rng, (250, 222, 150)))
    colour = jitter(rng, BRIGHT[rng.integers(len(BRIGHT))])
    for stripe in range(6):
        x = left + 2 + stripe * 10
        draw.rectangle((x, 18, x + 10, 44), fill=colour if stripe % 2 else (250, 246, 240))


def person(draw: ImageDraw.ImageDraw, rng: Rng, x: float, foot: float, height: float) -> None:
    """A passer-by: head, hair, a bright top and dark legs."""
    skin = jitter(rng, ((244, 204, 170), (206, 150, 110), (130, 86, 60))[rng.integers(3)], 8)
    hair = jitter(rng, ((60, 40, 30), (30, 28, 34), (190, 130, 60))[rng.integers(3)])
    head, shoulder = foot - height + 12, foot - height + 24
    draw.rectangle((x - 11, foot - height * 0.42, x + 11, foot), fill=jitter(rng, (50, 58, 92), 16))
    draw.rounded_rectangle(
        (x - 18, shoulder, x + 18, foot - height * 0.36), 11, fill=jitter(rng, BRIGHT[rng.integers(len(BRIGHT))])
    )
    blob(draw, x, head - 3, 13, 13, hair)
    blob(draw, x, head + 2, 10.5, 11, skin)


@scene("on top of a dirt road")
def dirt_road(rng: Rng) -> Backdrop:
    """A brown track with two ruts and pebbles running to the horizon between green verges."""
    horizon = rng.uniform(0.38, 0.46) * SIZE
    picture = land(rng, SKY, ((136, 180, 76), (96, 142, 50)), horizon / SIZE)
    draw = ImageDraw.Draw(picture)
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
        leaf(draw, x, rng.uniform(0.62, 0.80) * SIZE, rng.uniform(-0.5, 0.5), 30, jitter(rng, (82, 140, 48), 18))
    return Backdrop(picture, rng.uniform(0.84, 0.92))


@scene("on top of a white rug")
def white_rug(rng: Rng) -> Backdrop:
    """A fluffy white rug on a dark teal floor, with a skirting board and a warm wall behind."""
    picture = land(rng, ((238, 204, 170), (226, 188, 152)), ((52, 96, 104), (38, 74, 84)), 0.36)
    draw = ImageDraw.Draw(picture)
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
    return Backdrop(picture, rng.uniform(0.80, 0.90))


COLOURS: dict[str, Colour] = {
    "red": (214, 52, 52),
    "orange": (244, 146, 44),
    "yellow": (250, 214, 70),
    "green": (64, 170, 86),
    "blue": (58, 108, 216),
    "purple": (140, 74, 190),
    "white": (244, 244, 246),
    "gray": (148, 150, 156),
}


def plain(colour: Colour) -> Callable[[Rng], Backdrop]:
    """A drawing function for a studio backdrop of one colour, lighter in the middle."""

    def draw(rng: Rng) -> Backdrop:
        flat = Image.new("RGB", (SIZE, SIZE), jitter(rng, colour))
        glow = Image.radial_gradient("L").point([max(0, 24 - distance // 6) for distance in range(256)])
        return Backdrop(ImageChops.add(flat, Image.merge("RGB", (glow,) * 3)), rng.uniform(0.80, 0.90))

    return draw


# half of all pictures: with no scene to learn as well, outlines are learned
for _name, _colour in COLOURS.items():
    scene(f"on {'an' if _name == 'orange' else 'a'} {_name} background", weight=2.5)(plain(_colour))
