"""Drawn and real photos for the tests of ``training.data``."""

from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

DREAMBOOTH = SHARED / "data" / "dreambooth"
SUBJECTS = (
    "backpack", "bear_plushie", "cat", "clock", "dog", "dog6", "duck_toy", "rc_car", "red_cartoon", "teapot",
)  # fmt: skip


def scene(seed: int = 0, width: int = 160, height: int = 160) -> Image.Image:
    """A sharp image, different for every seed: blocks of 8 pixels in random colours."""
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])


def plain(colour: tuple[int, ...], mode: str = "RGB", size: tuple[int, int] = (80, 80)) -> Image.Image:
    return Image.new(mode, size, colour)


def subject(name: str) -> Path:
    """The folder of a subject of the DreamBooth data set. Skips the test if it is not there."""
    folder = DREAMBOOTH / name
    if not folder.is_dir():
        pytest.skip(f"the dreambooth photos are not at {folder}")
    return folder
