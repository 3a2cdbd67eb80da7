"""Drawing primitives and colours of scenes and attributes.

Scenes are drawn at twice the size of the finished image and downsampled, which antialiases every edge.
"""

import numpy as np
from PIL import Image, ImageDraw

SIZE = 256
"""Width and height of a backdrop in pixels, twice those of a finished image."""

Rng = np.random.Generator
Colour = tuple[int, int, int]

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


def jitter(rng: Rng, colour: Colour, amount: int = 12) -> Colour:
    """Shift all channels of a colour by up to ``amount``, and each by up to a third of it more."""
    moved = np.array(colour) + rng.integers(-amount, amount + 1) + rng.integers(-amount // 3, amount // 3 + 1, 3)
    return tuple(int(channel) for channel in np.clip(moved, 0, 255))  # type: ignore[return-value]


def darken(colour: Colour, gain: float) -> Colour:
    """Multiply a colour by ``gain``."""
    return tuple(round(channel * gain) for channel in colour)  # type: ignore[return-value]


def lighten(colour: Colour, share: float) -> Colour:
    """Mix a colour with a share of white."""
    return tuple(round(channel + (255 - channel) * share) for channel in colour)  # type: ignore[return-value]


def gradient(top: Colour, bottom: Colour, height: int = SIZE) -> Image.Image:
    """Return a vertical gradient of SIZE × ``height`` pixels."""
    ramp = np.linspace(top, bottom, max(height, 1))[:, None, :].round().astype(np.uint8)
    return Image.fromarray(ramp).resize((SIZE, max(height, 1)), Image.Resampling.NEAREST)


def blob(draw: ImageDraw.ImageDraw, x: float, y: float, radius_x: float, radius_y: float, colour: Colour) -> None:
    """Draw a filled ellipse with its centre at (x, y)."""
    draw.ellipse((x - radius_x, y - radius_y, x + radius_x, y + radius_y), fill=colour)
