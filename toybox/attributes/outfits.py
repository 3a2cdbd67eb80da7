"""Worn attributes: a shirt, and outfits of a garment and a hat."""

from dataclasses import dataclass

from PIL import Image, ImageDraw

from toybox.attributes.accessories import fit_hat, new_hat
from toybox.attributes.shapes import Point, Shape, block, oval, paste_shape, polygon, star
from toybox.attributes.sprite import Head, body_span, crop_visible, find_head, pad
from toybox.drawing import Colour, Rng, jitter


@dataclass(frozen=True)
class Garment:
    """A garment on a sprite: the image, the mask of the cloth (L), its centre, top and half width, and the head."""

    canvas: Image.Image
    cloth: Image.Image
    middle: float
    top: float
    half: float
    head: Head

    @property
    def size(self) -> int:
        """The longer side of the sprite."""
        return self.head.size

    def place(self, across: float, down: float) -> Point:
        """Return a point on the cloth: ``across`` from −1 (left) to 1, ``down`` from 0 (neckline) to 1 (hem)."""
        return self.middle + across * self.half, self.top + down * (self.canvas.height - self.top)

    def add(self, colour: Colour, shape: Shape) -> None:
        """Paste a shape on the cloth, clipped to it."""
        paste_shape(self.canvas, colour, shape, self.cloth)


def dress(sprite: Image.Image, colour: Colour) -> Garment:
    """Cover the lower part of a sprite with cloth that has a round neckline and is slightly wider than the body."""
    size = max(sprite.size)
    margin = round(0.08 * size)
    canvas = pad(sprite, margin, 0, margin, margin)
    left, right = body_span(sprite, 0.70)
    middle, half = (left + right) / 2 + margin, max((right - left) / 2, 0.24 * size)
    top = 0.58 * sprite.height
    cloth = Image.new("L", canvas.size)
    draw = ImageDraw.Draw(cloth)
    draw.rounded_rectangle((middle - half, top, middle + half, canvas.height - 1), round(0.12 * size), 255)
    body = pad(sprite, margin, 0, margin, margin).getchannel("A").crop((0, round(top), canvas.width, canvas.height))
    cloth.paste(255, (0, round(top)), body)
    neck = 0.62 * half
    draw.ellipse((middle - neck, top - 0.20 * size, middle + neck, top + 0.16 * size), 0)
    head = find_head(sprite)
    garment = Garment(canvas, cloth, middle, top, half, head._replace(x=head.x + margin))
    garment.add(colour, lambda draw: draw.bitmap((0, 0), cloth, 255))
    return garment


def add_buttons(garment: Garment, colour: Colour, across: float = 0.0) -> None:
    """Add a column of three round buttons."""
    for down in (0.50, 0.70, 0.90):
        garment.add(colour, oval(*garment.place(across, down), 0.026 * garment.size, 0.026 * garment.size))


def add_collar(garment: Garment, colour: Colour) -> None:
    """Add two pointed lapels below the neckline."""
    for side in (-1, 1):
        corners = [garment.place(side * across, down) for across, down in ((0.06, 0.36), (0.52, 0.12), (0.50, 0.48))]
        garment.add(colour, polygon(*corners))


def yellow_shirt(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A yellow shirt with a collar, a button placket and a pocket."""
    yellow = jitter(rng, (255, 212, 30), 8)
    garment = dress(sprite, yellow)
    garment.add((226, 164, 10), block(*garment.place(-0.09, 0.3), *garment.place(0.09, 1)))
    add_buttons(garment, (255, 255, 255))
    add_collar(garment, (255, 240, 130))
    garment.add((232, 170, 14), block(*garment.place(0.34, 0.56), *garment.place(0.70, 0.84), 4))
    return crop_visible(garment.canvas)


def chef(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A white jacket with two columns of buttons and a red neckerchief, and a tall puffed hat."""
    garment = dress(sprite, jitter(rng, (248, 248, 250), 4))
    for across in (-0.32, 0.32):
        add_buttons(garment, (60, 62, 76), across)
    garment.add((222, 44, 48), polygon(*(garment.place(a, d) for a, d in ((-0.50, 0.16), (0.50, 0.16), (0, 0.66)))))
    hat = new_hat()
    white = jitter(rng, (250, 250, 252), 3)
    for x, y, radius in ((30, 44, 26), (98, 44, 26), (64, 34, 32), (48, 52, 24), (80, 52, 24)):
        paste_shape(hat, white, oval(x, y, radius, radius))
    paste_shape(hat, white, polygon((26, 56), (102, 56), (98, 100), (30, 100)))
    paste_shape(hat, (226, 228, 236), block(24, 88, 104, 116, 8))
    return fit_hat(garment.canvas, hat, rng, garment.head)


def firefighter(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A dark coat with reflective yellow stripes, and a red helmet with a golden shield."""
    garment = dress(sprite, jitter(rng, (62, 58, 66), 8))
    for down in (0.50, 0.78):
        left, top = garment.place(-2, down)
        right, foot = garment.place(2, down + 0.15)
        garment.add((226, 250, 40), block(left, top, right, foot))
        garment.add((236, 240, 244), block(left, top + 0.35 * (foot - top), right, foot - 0.35 * (foot - top)))
    add_collar(garment, (226, 250, 40))
    hat = new_hat()
    red = jitter(rng, (226, 34, 34), 10)
    paste_shape(hat, red, oval(64, 104, 60, 14))
    paste_shape(hat, red, lambda draw: draw.pieslice((22, 30, 106, 170), 180, 360, 255))
    paste_shape(hat, (250, 206, 60), block(60, 22, 68, 60, 4))
    paste_shape(hat, (250, 196, 40), polygon((64, 46), (88, 54), (84, 84), (64, 98), (44, 84), (40, 54)))
    paste_shape(hat, (200, 24, 28), polygon(*star(64, 70, 14)))
    return fit_hat(garment.canvas, hat, rng, garment.head)


def police(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A dark blue shirt with a black tie and a golden star, and a peaked cap."""
    blue = jitter(rng, (36, 66, 158), 8)
    garment = dress(sprite, blue)
    corners = ((-0.08, 0.30), (0.08, 0.30), (0.13, 0.86), (0, 1), (-0.13, 0.86))
    garment.add((24, 24, 34), polygon(*(garment.place(a, d) for a, d in corners)))
    add_collar(garment, (70, 112, 214))
    garment.add((255, 206, 50), polygon(*star(*garment.place(0.52, 0.68), 0.105 * garment.size)))
    hat = new_hat()
    paste_shape(hat, blue, oval(64, 58, 58, 26))
    paste_shape(hat, blue, polygon((16, 66), (112, 66), (100, 98), (28, 98)))
    paste_shape(hat, (24, 26, 40), block(26, 82, 102, 100, 4))
    paste_shape(hat, (20, 20, 28), lambda draw: draw.chord((22, 74, 106, 122), 10, 170, 255))
    paste_shape(hat, (255, 206, 50), polygon(*star(64, 66, 19)))
    return fit_hat(garment.canvas, hat, rng, garment.head)


def wizard(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A purple robe with golden stars, and a matching pointed hat."""
    purple, gold = jitter(rng, (122, 44, 190), 10), (255, 214, 70)
    garment = dress(sprite, purple)
    for across, down in ((-0.62, 0.42), (0.60, 0.46), (-0.24, 0.66), (0.24, 0.82), (-0.62, 0.88), (0.74, 0.88)):
        garment.add(gold, polygon(*star(*garment.place(across, down), 0.07 * garment.size)))
    hat = new_hat()
    paste_shape(hat, purple, oval(64, 106, 60, 14))
    paste_shape(hat, purple, polygon((76, 0), (104, 104), (84, 110), (44, 110), (24, 104)))
    paste_shape(hat, gold, polygon((28, 90), (100, 90), (104, 104), (84, 110), (44, 110), (24, 104)))
    for x, y, radius in ((72, 34, 10), (54, 66, 12), (82, 72, 11)):
        paste_shape(hat, gold, polygon(*star(x, y, radius)))
    return fit_hat(garment.canvas, hat, rng, garment.head)
