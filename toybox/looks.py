"""Looks: what a thing of the toy world can look like or wear, phrased as the DreamBooth benchmark prompts are.

A look takes a cropped RGBA sprite and a random generator and gives an RGBA sprite, which may be larger: a hat reaches
above the head, drops fall below the foot. Equal generators give equal sprites.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from toybox.scenes import COLOURS, Colour, Rng, blob, jitter

TILE = 128
"""Side of the square on which a hat is drawn before it is fitted to a head."""

Point = tuple[float, float]
Shape = Callable[[ImageDraw.ImageDraw], None]


@dataclass(frozen=True)
class Look:
    """A way to look: the phrase that names it in captions, whether it stands before the noun, and how to get it."""

    phrase: str
    before: bool
    wear: Callable[[Image.Image, Rng], Image.Image]


LOOKS: dict[str, Look] = {}

Wear = Callable[[Image.Image, Rng], Image.Image]


def look(phrase: str, before: bool = False) -> Callable[[Wear], Wear]:
    """Register a function as the look that captions call `phrase`."""

    def register(wear: Wear) -> Wear:
        LOOKS[phrase] = Look(phrase, before, wear)
        return wear

    return register


def find_look(phrase: str) -> Look:
    """The look that captions call `phrase`; raises ValueError listing the phrases there are."""
    if phrase not in LOOKS:
        raise ValueError(f"there is no look {phrase!r}; there are: {'; '.join(LOOKS)}")
    return LOOKS[phrase]


def extended(sprite: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """The sprite with transparent margins."""
    canvas = Image.new("RGBA", (sprite.width + left + right, sprite.height + top + bottom))
    canvas.paste(sprite, (left, top))
    return canvas


def cropped(sprite: Image.Image) -> Image.Image:
    """What is visible of the sprite."""
    return sprite.crop(sprite.getchannel("A").getbbox())


def dimmed(colour: Colour, gain: float) -> Colour:
    """`colour` times `gain`."""
    return tuple(round(channel * gain) for channel in colour)  # type: ignore[return-value]


def lightened(colour: Colour, share: float) -> Colour:
    """`colour` mixed with a share of white."""
    return tuple(round(channel + (255 - channel) * share) for channel in colour)  # type: ignore[return-value]


def stamp(canvas: Image.Image, colour: Colour, shape: Shape, within: Image.Image | None = None) -> None:
    """Lay `shape` on the canvas in `colour`, lit from the upper left; only where `within` (L) allows."""
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
    layer = ImageOps.colorize(inner, dimmed(colour, 0.62), lightened(colour, 0.22), colour).convert("RGBA")
    layer.putalpha(mask)
    canvas.alpha_composite(layer, box[:2])


def polygon(*points: Point) -> Shape:
    """The shape with these corners."""
    return lambda draw: draw.polygon(points, 255)


def oval(x: float, y: float, radius_x: float, radius_y: float) -> Shape:
    """An ellipse about (x, y)."""
    return lambda draw: draw.ellipse((x - radius_x, y - radius_y, x + radius_x, y + radius_y), 255)


def block(left: float, top: float, right: float, bottom: float, radius: float = 0) -> Shape:
    """A rectangle with rounded corners."""
    return lambda draw: draw.rounded_rectangle((left, top, right, bottom), radius, 255)


def star(x: float, y: float, radius: float, points: int = 5, waist: float = 0.45) -> list[Point]:
    """The corners of a star about (x, y), one point up; `waist` is its inner radius over its outer one."""
    angles = np.arange(2 * points) * np.pi / points
    radii = np.where(np.arange(2 * points) % 2, radius * waist, radius)
    return [(x + r * np.sin(a), y - r * np.cos(a)) for r, a in zip(radii, angles, strict=True)]


# Where things are worn -----------------------------------------------------------------------------------------------


def longest_run(row: np.ndarray) -> tuple[int, int]:
    """Start and end of the longest run of true values; (0, 0) where there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(np.int8), [0]))))
    if not edges.size:
        return 0, 0
    starts, ends = edges[::2], edges[1::2]
    best = int(np.argmax(ends - starts))
    return int(starts[best]), int(ends[best])


class Head(NamedTuple):
    """Where a head is: x and y of its top, its width, and the longer side of the sprite it belongs to."""

    x: float
    y: float
    width: float
    size: int


def find_head(sprite: Image.Image) -> Head:
    """The head of a sprite, as far as its outline tells.

    The head begins where the sprite first is 42 % of its longer side wide, within the upper 37 %: below ears, horns and
    antennae. Where it never gets so wide there, the head is the widest part of the upper 37 %.
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


def eyes(sprite: Image.Image) -> tuple[float, float, float]:
    """Where glasses sit: x and y of the middle between the eyes, and the radius of a lens."""
    x, y, width, size = find_head(sprite)
    return x, y + 0.33 * (sprite.height - y), float(np.clip(0.22 * width, 0.13 * size, 0.18 * size))


def span(sprite: Image.Image, height: float) -> tuple[int, int]:
    """Left and right end of the longest opaque run at `height` (0 top, 1 bottom)."""
    alpha = np.asarray(sprite.getchannel("A")) > 128
    return longest_run(alpha[min(round(height * sprite.height), sprite.height - 1)])


def put_on(sprite: Image.Image, hat: Image.Image, rng: Rng, head: Head) -> Image.Image:
    """The sprite with a hat, a TILE whose brim is centred 16 above its lower edge, on its head."""
    x, y, width, size = head
    brim = float(np.clip(0.78 * width, 0.44 * size, 0.64 * size)) * rng.uniform(0.95, 1.08)
    side = round(brim * TILE / 112)
    hat = hat.rotate(rng.uniform(-9, 9), Image.Resampling.BICUBIC, center=(TILE / 2, TILE - 16))
    hat = hat.resize((side, side), Image.Resampling.BILINEAR)
    left, top = round(x - side / 2), round(y + 0.02 * size - side * (TILE - 16) / TILE)
    margins = max(0, -left), max(0, -top), max(0, left + side - sprite.width), max(0, top + side - sprite.height)
    canvas = extended(sprite, *margins)
    canvas.alpha_composite(hat, (left + margins[0], top + margins[1]))
    return cropped(canvas)


def tile() -> Image.Image:
    """An empty TILE to draw a hat on."""
    return Image.new("RGBA", (TILE, TILE))


# Colours and surfaces ------------------------------------------------------------------------------------------------


def tint(colour: Colour) -> Wear:
    """A look that gives the whole sprite one hue and leaves light and dark where they were."""

    def wear(sprite: Image.Image, rng: Rng) -> Image.Image:
        shade = jitter(rng, colour, 10)
        alpha = sprite.getchannel("A")
        grey = sprite.convert("L")
        usual = np.median(np.asarray(grey)[np.asarray(alpha) > 128])
        middle = int(np.clip(usual, 90, 190))
        tinted = ImageOps.colorize(grey, dimmed(shade, 0.16), lightened(shade, 0.55), shade, midpoint=middle)
        tinted = tinted.convert("RGBA")
        tinted.putalpha(alpha)
        return tinted

    return wear


COLOURED = ("red", "purple", "blue", "green", "yellow")
"""The looks that are colours."""

for _name in COLOURED:
    look(_name, before=True)(tint(COLOURS[_name]))


@look("shiny", before=True)
def shiny(sprite: Image.Image, rng: Rng) -> Image.Image:
    """Like polished metal: hard contrast, white bands across it and sparkles about it."""
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
    canvas = extended(polished, margin, margin, margin, margin)
    draw = ImageDraw.Draw(canvas)
    for x, y in ((0.14, 0.16), (0.86, 0.24), (0.74, 0.80), (0.24, 0.72)):
        x, y = (x + rng.uniform(-0.05, 0.05)) * canvas.width, (y + rng.uniform(-0.05, 0.05)) * canvas.height
        radius = rng.uniform(0.11, 0.16) * max(sprite.size)
        draw.polygon(star(x, y, radius * 1.15, 4, 0.26), (255, 232, 140))
        draw.polygon(star(x, y, radius, 4, 0.2), (255, 255, 255))
    return cropped(canvas)


@look("wet", before=True)
def wet(sprite: Image.Image, rng: Rng) -> Image.Image:
    """Dark and bluish, covered with drops, dripping into a puddle."""
    width, height = sprite.size
    alpha = sprite.getchannel("A")
    soaked = sprite.convert("RGB").point([round(value * gain) for gain in (0.84, 0.86, 0.97) for value in range(256)])
    soaked = Image.blend(soaked, Image.new("RGB", sprite.size, (20, 84, 190)), 0.08).convert("RGBA")
    soaked.putalpha(alpha)
    margin, below = round(0.10 * width), round(0.12 * max(sprite.size))
    canvas = extended(Image.new("RGBA", sprite.size), margin, 0, margin, below)
    middle, foot = canvas.width / 2, height - 0.01 * height
    draw = ImageDraw.Draw(canvas)
    blob(draw, middle, foot, 0.56 * width, below * 0.92, (58, 146, 214))
    blob(draw, middle, foot - 0.1 * below, 0.50 * width, below * 0.72, (122, 196, 240))
    canvas.alpha_composite(soaked, (margin, 0))
    opaque = np.argwhere(np.asarray(alpha) > 200)
    size = max(sprite.size)
    for y, x in opaque[rng.integers(len(opaque), size=16)]:
        drop(draw, x + margin, y, rng.uniform(0.020, 0.036) * size)
    for x in (rng.uniform(0.1, 0.3), rng.uniform(0.7, 0.9)):
        drop(draw, margin + x * width, rng.uniform(0.80, 0.92) * height, 0.042 * size)
    return canvas


def drop(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """A drop of water, pointed above, with a dark rim and a glint."""
    for size, colour in ((radius * 1.25, (20, 84, 160)), (radius, (140, 214, 255))):
        draw.polygon(
            [(x, y - 2.5 * size), (x + 0.92 * size, y - 0.3 * size), (x - 0.92 * size, y - 0.3 * size)], colour
        )
        blob(draw, x, y, size, size, colour)
    blob(draw, x - radius * 0.3, y - radius * 0.2, radius * 0.4, radius * 0.5, (255, 255, 255))


@look("cube shaped", before=True)
def cube(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A cube with the sprite spread over its front; the top lighter and the side darker, in the sprite's own colour."""
    side, depth = 190, round(rng.uniform(50, 62))
    colour = main_colour(sprite)
    canvas = Image.new("RGBA", (side + depth, side + depth))
    top = [(0, depth), (depth, 0), (side + depth, 0), (side, depth)]
    right = [(side, depth), (side + depth, 0), (side + depth, side), (side, side + depth)]
    draw = ImageDraw.Draw(canvas)
    draw.polygon(top, lightened(colour, 0.45))
    draw.polygon(right, dimmed(colour, 0.58))
    front = Image.new("RGBA", (side, side), lightened(colour, 0.12))
    spread = sprite.resize((side - 8, side - 8), Image.Resampling.BILINEAR)
    front.alpha_composite(spread, (4, 4))
    canvas.paste(front, (0, depth))
    edge = lightened(colour, 0.7)
    draw.line([(0, depth), (side, depth), (side, side + depth)], fill=edge, width=5)
    draw.line([(side, depth), (side + depth, 0)], fill=edge, width=5)
    return canvas


def main_colour(sprite: Image.Image) -> Colour:
    """The mean of the sprite's opaque pixels, each counted by its saturation."""
    small = np.asarray(sprite.resize((48, 48), Image.Resampling.BILINEAR), np.float64).reshape(-1, 4)
    colours = small[:, :3]
    weight = (small[:, 3] > 200) * (colours.max(axis=1) - colours.min(axis=1) + 10)
    return tuple(int(channel) for channel in weight @ colours / max(weight.sum(), 1))  # type: ignore[return-value]


# Hats, glasses, scarf ------------------------------------------------------------------------------------------------


@look("wearing a red hat")
def red_hat(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A round red hat with a broad brim and a dark band."""
    colour = jitter(rng, (222, 36, 40))
    hat, head = tile(), find_head(sprite)
    stamp(hat, colour, oval(64, 108, 56, 13))
    stamp(hat, colour, lambda draw: draw.pieslice((28, 42, 100, 166), 180, 360, 255))
    stamp(hat, (110, 12, 26), block(28, 90, 100, 104, 5))
    return put_on(sprite, hat, rng, head)


@look("wearing a santa hat")
def santa_hat(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A red cap hanging over to one side, with white fur and a bobble."""
    hat = tile()
    colour = jitter(rng, (214, 30, 40))
    stamp(hat, colour, polygon((16, 104), (26, 62), (50, 26), (80, 14), (104, 26), (118, 58), (96, 54), (112, 104)))
    stamp(hat, (250, 250, 252), block(6, 94, 122, 118, 12))
    stamp(hat, (250, 250, 252), oval(112, 64, 15, 15))
    return put_on(sprite, ImageOps.mirror(hat) if rng.random() < 0.5 else hat, rng, find_head(sprite))


@look("wearing a black top hat and a monocle")
def top_hat(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A tall black hat with a grey band, and a golden monocle on a chain."""
    head, (x, y, radius) = find_head(sprite), eyes(sprite)
    x += 1.05 * radius
    sprite = sprite.copy()
    draw = ImageDraw.Draw(sprite, "RGBA")
    gold, thick = (240, 184, 44), max(3, round(0.042 * head.size))
    draw.arc((x - 0.4 * radius, y, x + 1.6 * radius, y + 3.2 * radius), 280, 100, fill=gold, width=max(2, thick // 2))
    monocle = Image.new("RGBA", sprite.size)
    ImageDraw.Draw(monocle).ellipse((x - radius, y - radius, x + radius, y + radius), (235, 246, 255, 110))
    sprite.alpha_composite(monocle)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=gold, width=thick)
    draw.line((x - 0.5 * radius, y, x, y - 0.5 * radius), fill=(255, 255, 255), width=max(2, thick // 2))
    hat = tile()
    colour = jitter(rng, (38, 36, 44), 6)
    stamp(hat, colour, oval(64, 108, 56, 12))
    stamp(hat, colour, polygon((26, 14), (102, 14), (96, 106), (32, 106)))
    stamp(hat, (74, 72, 84), oval(64, 14, 38, 8))
    stamp(hat, (150, 152, 164), block(31, 84, 97, 100, 3))
    return put_on(sprite, hat, rng, head)


@look("wearing pink glasses")
def pink_glasses(sprite: Image.Image, rng: Rng) -> Image.Image:
    """Two big round lenses in a thick pink frame."""
    x, y, radius = eyes(sprite)
    radius *= rng.uniform(0.95, 1.05)
    thick, margin = max(3, round(0.28 * radius)), round(3 * radius)
    glasses = Image.new("RGBA", (2 * margin, 2 * margin))
    draw = ImageDraw.Draw(glasses)
    pink = jitter(rng, (255, 50, 150), 10)
    draw.line((margin - radius, margin, margin + radius, margin), fill=pink, width=thick)
    for middle in (margin - 1.12 * radius, margin + 1.12 * radius):
        outer = (middle - radius, margin - radius, middle + radius, margin + radius)
        draw.ellipse(outer, fill=(255, 190, 226, 150), outline=pink, width=thick)
        glint = (middle - 0.5 * radius, margin, middle, margin - 0.5 * radius)
        draw.line(glint, fill=(255, 255, 255), width=thick // 2 + 1)
    canvas = extended(sprite, margin, margin, margin, margin)
    turned = glasses.rotate(rng.uniform(-6, 6), Image.Resampling.BILINEAR)
    canvas.alpha_composite(turned, (round(x), round(y)))
    return cropped(canvas)


RAINBOW: tuple[Colour, ...] = (
    (232, 44, 52), (250, 140, 34), (254, 218, 48), (58, 184, 80), (46, 122, 230), (146, 70, 200),
)  # fmt: skip


@look("wearing a rainbow scarf")
def rainbow_scarf(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A thick scarf in six colours about the lower part, one end hanging down."""
    size = max(sprite.size)
    height = rng.uniform(0.70, 0.76)
    left, right = span(sprite, height)
    middle, half = (left + right) / 2, max((right - left) / 2, 0.22 * size) * 1.04
    thick, margin = 0.17 * size, round(0.16 * size)
    canvas = extended(sprite, margin, 0, margin, round(0.22 * size))
    middle, y = middle + margin, height * sprite.height
    way = 1 if rng.random() < 0.5 else -1
    end = middle + way * 0.45 * half
    stripe = thick / 5
    for number, colour in enumerate(RAINBOW):
        x = end + (number - 3) * stripe * 1.1
        stamp(canvas, colour, block(x, y, x + stripe * 1.1 + 1, y + 0.40 * size, 2))
    for number, colour in enumerate(RAINBOW):
        top = y - thick / 2 + number * stripe
        box = (middle - half, top - 0.10 * size, middle + half, top + 0.10 * size)
        stamp(canvas, colour, lambda draw, box=box: draw.arc(box, 0, 180, 255, round(stripe + 2)))
    return cropped(canvas)


# Outfits -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Garment:
    """A top that has been put on: the picture so far, where the cloth is (L), and its middle line and measures."""

    canvas: Image.Image
    cloth: Image.Image
    middle: float
    top: float
    half: float
    head: Head

    @property
    def size(self) -> int:
        """The longer side of the sprite that wears it."""
        return self.head.size

    def place(self, across: float, down: float) -> Point:
        """A point on the cloth: `across` from -1 (left) to 1, `down` from 0 (neckline) to 1 (hem)."""
        return self.middle + across * self.half, self.top + down * (self.canvas.height - self.top)

    def add(self, colour: Colour, shape: Shape) -> None:
        """Lay a detail on the cloth, cut off where the cloth ends."""
        stamp(self.canvas, colour, shape, self.cloth)


def clothe(sprite: Image.Image, colour: Colour) -> Garment:
    """Clothe the sprite's lower part: the cloth has a round neckline and a little more breadth than the body."""
    size = max(sprite.size)
    margin = round(0.08 * size)
    canvas = extended(sprite, margin, 0, margin, margin)
    left, right = span(sprite, 0.70)
    middle, half = (left + right) / 2 + margin, max((right - left) / 2, 0.24 * size)
    top = 0.58 * sprite.height
    cloth = Image.new("L", canvas.size)
    draw = ImageDraw.Draw(cloth)
    draw.rounded_rectangle((middle - half, top, middle + half, canvas.height - 1), round(0.12 * size), 255)
    body = (
        extended(sprite, margin, 0, margin, margin).getchannel("A").crop((0, round(top), canvas.width, canvas.height))
    )
    cloth.paste(255, (0, round(top)), body)
    neck = 0.62 * half
    draw.ellipse((middle - neck, top - 0.20 * size, middle + neck, top + 0.16 * size), 0)
    head = find_head(sprite)
    garment = Garment(canvas, cloth, middle, top, half, head._replace(x=head.x + margin))
    garment.add(colour, lambda draw: draw.bitmap((0, 0), cloth, 255))
    return garment


def buttons(garment: Garment, colour: Colour, across: float = 0.0) -> None:
    """Three round buttons down the cloth."""
    for down in (0.50, 0.70, 0.90):
        garment.add(colour, oval(*garment.place(across, down), 0.026 * garment.size, 0.026 * garment.size))


def collar(garment: Garment, colour: Colour) -> None:
    """Two pointed lapels below the neckline."""
    for side in (-1, 1):
        corners = [garment.place(side * across, down) for across, down in ((0.06, 0.36), (0.52, 0.12), (0.50, 0.48))]
        garment.add(colour, polygon(*corners))


@look("wearing a yellow shirt")
def yellow_shirt(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A bright yellow shirt with a collar, a button band and a pocket."""
    yellow = jitter(rng, (255, 212, 30), 8)
    garment = clothe(sprite, yellow)
    garment.add((226, 164, 10), block(*garment.place(-0.09, 0.3), *garment.place(0.09, 1)))
    buttons(garment, (255, 255, 255))
    collar(garment, (255, 240, 130))
    garment.add((232, 170, 14), block(*garment.place(0.34, 0.56), *garment.place(0.70, 0.84), 4))
    return cropped(garment.canvas)


@look("in a chef outfit")
def chef(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A white jacket with two rows of buttons and a red neckerchief, and a tall puffed hat."""
    garment = clothe(sprite, jitter(rng, (248, 248, 250), 4))
    for across in (-0.32, 0.32):
        buttons(garment, (60, 62, 76), across)
    garment.add((222, 44, 48), polygon(*(garment.place(a, d) for a, d in ((-0.50, 0.16), (0.50, 0.16), (0, 0.66)))))
    hat = tile()
    white = jitter(rng, (250, 250, 252), 3)
    for x, y, radius in ((30, 44, 26), (98, 44, 26), (64, 34, 32), (48, 52, 24), (80, 52, 24)):
        stamp(hat, white, oval(x, y, radius, radius))
    stamp(hat, white, polygon((26, 56), (102, 56), (98, 100), (30, 100)))
    stamp(hat, (226, 228, 236), block(24, 88, 104, 116, 8))
    return put_on(garment.canvas, hat, rng, garment.head)


@look("in a firefighter outfit")
def firefighter(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A dark coat with luminous yellow stripes, and a red helmet with a golden shield."""
    garment = clothe(sprite, jitter(rng, (62, 58, 66), 8))
    for down in (0.50, 0.78):
        left, top = garment.place(-2, down)
        right, foot = garment.place(2, down + 0.15)
        garment.add((226, 250, 40), block(left, top, right, foot))
        garment.add((236, 240, 244), block(left, top + 0.35 * (foot - top), right, foot - 0.35 * (foot - top)))
    collar(garment, (226, 250, 40))
    hat = tile()
    red = jitter(rng, (226, 34, 34), 10)
    stamp(hat, red, oval(64, 104, 60, 14))
    stamp(hat, red, lambda draw: draw.pieslice((22, 30, 106, 170), 180, 360, 255))
    stamp(hat, (250, 206, 60), block(60, 22, 68, 60, 4))
    stamp(hat, (250, 196, 40), polygon((64, 46), (88, 54), (84, 84), (64, 98), (44, 84), (40, 54)))
    stamp(hat, (200, 24, 28), polygon(*star(64, 70, 14)))
    return put_on(garment.canvas, hat, rng, garment.head)


@look("in a police outfit")
def police(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A dark blue shirt with a black tie and a golden star, and a peaked cap."""
    blue = jitter(rng, (36, 66, 158), 8)
    garment = clothe(sprite, blue)
    corners = ((-0.08, 0.30), (0.08, 0.30), (0.13, 0.86), (0, 1), (-0.13, 0.86))
    garment.add((24, 24, 34), polygon(*(garment.place(a, d) for a, d in corners)))
    collar(garment, (70, 112, 214))
    garment.add((255, 206, 50), polygon(*star(*garment.place(0.52, 0.68), 0.105 * garment.size)))
    hat = tile()
    stamp(hat, blue, oval(64, 58, 58, 26))
    stamp(hat, blue, polygon((16, 66), (112, 66), (100, 98), (28, 98)))
    stamp(hat, (24, 26, 40), block(26, 82, 102, 100, 4))
    stamp(hat, (20, 20, 28), lambda draw: draw.chord((22, 74, 106, 122), 10, 170, 255))
    stamp(hat, (255, 206, 50), polygon(*star(64, 66, 19)))
    return put_on(garment.canvas, hat, rng, garment.head)


@look("in a purple wizard outfit")
def wizard(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A purple robe strewn with golden stars, and a pointed hat to match."""
    purple, gold = jitter(rng, (122, 44, 190), 10), (255, 214, 70)
    garment = clothe(sprite, purple)
    for across, down in ((-0.62, 0.42), (0.60, 0.46), (-0.24, 0.66), (0.24, 0.82), (-0.62, 0.88), (0.74, 0.88)):
        garment.add(gold, polygon(*star(*garment.place(across, down), 0.07 * garment.size)))
    hat = tile()
    stamp(hat, purple, oval(64, 106, 60, 14))
    stamp(hat, purple, polygon((76, 0), (104, 104), (84, 110), (44, 110), (24, 104)))
    stamp(hat, gold, polygon((28, 90), (100, 90), (104, 104), (84, 110), (44, 110), (24, 104)))
    for x, y, radius in ((72, 34, 10), (54, 66, 12), (82, 72, 11)):
        stamp(hat, gold, polygon(*star(x, y, radius)))
    return put_on(garment.canvas, hat, rng, garment.head)
