"""One photo, and what can be wrong with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from hra_diffusion.errors import UserError

Box = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels of the upright photo."""
WarningKind = Literal[
    "blurred", "small", "dark", "bright", "far", "duplicate", "different", "background", "pose", "ignored", "mask"
]

MIN_SIDE = 64
"""Shortest side, in pixels, that a photo and its crop box may have."""


class PhotoError(UserError):
    """A photo or caption cannot be used. The message names the file, the reason and the remedy."""


@dataclass(frozen=True)
class PhotoWarning:
    """A possible problem with one photo, for a person to look at. ``message`` starts with the file name."""

    kind: WarningKind
    photo: Path
    message: str


@dataclass(frozen=True)
class Photo:
    """One photo ready for training.

    Attributes:
        path: Resolved path of the file.
        image: The cropped photo, RGB in sRGB: a square, or of the size of its bucket.
        caption: Text of the caption file, or None if there is none.
        crop: The part of the upright photo that ``image`` shows.
        frame: The part that ``crop`` was chosen from: the photo's crop box, or the whole photo.
        size: Width and height of the upright photo in pixels.
        sha256: SHA-256 of the file in hexadecimal.
        concept: Number of its subject, among those of the run.
        mask: The mask of the subject, greyscale, white inside, cropped as ``image``; None for the whole image.
    """

    path: Path
    image: Image.Image
    caption: str | None
    crop: Box
    frame: Box
    size: tuple[int, int]
    sha256: str
    concept: int = 0
    mask: Image.Image | None = None


@dataclass(frozen=True)
class Upright:
    """A decoded photo, not yet cropped.

    Attributes:
        image: The upright photo, RGB in sRGB.
        scale: Width and height of ``image`` relative to those in the file, which may be larger.
        size: Width and height of the upright photo in the file, in pixels. Boxes are in these pixels.
        sha256: SHA-256 of the file in hexadecimal.
    """

    image: Image.Image
    scale: tuple[float, float]
    size: tuple[int, int]
    sha256: str

    def resized(self, window: Box, size: tuple[int, int], reducing_gap: float | None = None) -> Image.Image:
        """Return a window of the photo, resized to ``size`` with Lanczos' filter."""
        return self.image.resize(size, Image.Resampling.LANCZOS, box=self.box(window), reducing_gap=reducing_gap)

    def box(self, window: Box) -> tuple[float, float, float, float]:
        """Return a window of the photo in pixels of ``image``."""
        across, down = self.scale
        return window[0] * across, window[1] * down, window[2] * across, window[3] * down


def unreadable(path: Path, error: Exception) -> PhotoError:
    """Return the error to raise for a file or folder that the operating system refuses to read."""
    reason = getattr(error, "strerror", None) or error
    return PhotoError(f"{path}: cannot be read ({reason}). Check its permissions, or copy it elsewhere.")
