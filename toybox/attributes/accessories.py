"""Worn attributes: hats, glasses, a scarf."""

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from toybox.attributes.shapes import block, oval, paste_shape, polygon
from toybox.attributes.sprite import Head, body_span, crop_visible, find_eyes, find_head, pad
from toybox.drawing import Colour, Rng, jitter

HAT_SIZE = 128
"""Width and height in pixels of the square that a hat is drawn on."""


def new_hat() -> Image.Image:
    """Return a transparent square to draw a hat on."""
    return Image.new("RGBA", (HAT_SIZE, HAT_SIZE))


def fit_hat(sprite: Image.Image, hat: Image.Image, rng: Rng, head: Head) -> Image.Image:
    """Put a hat on a head, scaled to its width; the hat's brim is 16 pixels above the lower edge of its square."""
    x, y, width, size = head
    brim = float(np.clip(0.78 * width, 0.44 * size, 0.64 * size)) * rng.uniform(0.95, 1.08)
    side = round(brim * HAT_SIZE / 112)
    hat = hat.rotate(rng.uniform(-9, 9), Image.Resampling.BICUBIC, center=(HAT_SIZE / 2, HAT_SIZE - 16))
    hat = hat.resize((side, side), Image.Resampling.BILINEAR)
    left, top = round(x - side / 2), round(y + 0.02 * size - side * (HAT_SIZE - 16) / HAT_SIZE)
    margins = max(0, -left), max(0, -top), max(0, left + side - sprite.width), max(0, top + side - sprite.height)
    canvas = pad(sprite, *margins)
    canvas.alpha_composite(hat, (left + margins[0], top + margins[1]))
    return crop_visible(canvas)


def red_hat(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A round red hat with a wide brim and a dark band."""
    colour = jitter(rng, (222, 36, 40))
    hat, head = new_hat(), find_head(sprite)
    paste_shape(hat, colour, oval(64, 108, 56, 13))
    paste_shape(hat, colour, lambda draw: draw.pieslice((28, 42, 100, 166), 180, 360, 255))
    paste_shape(hat, (110, 12, 26), block(28, 90, 100, 104, 5))
    return fit_hat(sprite, hat, rng, head)


def santa_hat(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A red cap that hangs to one side, with white fur and a pompom."""
    hat = new_hat()
    colour = jitter(rng, (214, 30, 40))
    cap = polygon((16, 104), (26, 62), (50, 26), (80, 14), (104, 26), (118, 58), (96, 54), (112, 104))
    paste_shape(hat, colour, cap)
    paste_shape(hat, (250, 250, 252), block(6, 94, 122, 118, 12))
    paste_shape(hat, (250, 250, 252), oval(112, 64, 15, 15))
    return fit_hat(sprite, ImageOps.mirror(hat) if rng.random() < 0.5 else hat, rng, find_head(sprite))


def top_hat(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A tall black hat with a grey band, and a golden monocle on a chain."""
    head, (x, y, radius) = find_head(sprite), find_eyes(sprite)
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
    hat = new_hat()
    colour = jitter(rng, (38, 36, 44), 6)
    paste_shape(hat, colour, oval(64, 108, 56, 12))
    paste_shape(hat, colour, polygon((26, 14), (102, 14), (96, 106), (32, 106)))
    paste_shape(hat, (74, 72, 84), oval(64, 14, 38, 8))
    paste_shape(hat, (150, 152, 164), block(31, 84, 97, 100, 3))
    return fit_hat(sprite, hat, rng, head)


def pink_glasses(sprite: Image.Image, rng: Rng) -> Image.Image:
    """Two big round lenses in a thick pink frame."""
    x, y, radius = find_eyes(sprite)
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
    canvas = pad(sprite, margin, margin, margin, margin)
    turned = glasses.rotate(rng.uniform(-6, 6), Image.Resampling.BILINEAR)
    canvas.alpha_composite(turned, (round(x), round(y)))
    return crop_visible(canvas)


RAINBOW: tuple[Colour, ...] = (
    (232, 44, 52), (250, 140, 34), (254, 218, 48), (58, 184, 80), (46, 122, 230), (146, 70, 200),
)  # fmt: skip


def rainbow_scarf(sprite: Image.Image, rng: Rng) -> Image.Image:
    """A thick scarf in six colours around the lower part, with one end hanging down."""
    size = max(sprite.size)
    height = rng.uniform(0.70, 0.76)
    left, right = body_span(sprite, height)
    middle, half = (left + right) / 2, max((right - left) / 2, 0.22 * size) * 1.04
    thick, margin = 0.17 * size, round(0.16 * size)
    canvas = pad(sprite, margin, 0, margin, round(0.22 * size))
    middle, y = middle + margin, height * sprite.height
    way = 1 if rng.random() < 0.5 else -1
    end = middle + way * 0.45 * half
    stripe = thick / 5
    for number, colour in enumerate(RAINBOW):
        x = end + (number - 3) * stripe * 1.1
        paste_shape(canvas, colour, block(x, y, x + stripe * 1.1 + 1, y + 0.40 * size, 2))
    for number, colour in enumerate(RAINBOW):
        top = y - thick / 2 + number * stripe
        box = (middle - half, top - 0.10 * size, middle + half, top + 0.10 * size)
        paste_shape(canvas, colour, lambda draw, box=box: draw.arc(box, 0, 180, 255, round(stripe + 2)))
    return crop_visible(canvas)
