"""Crop photos: to squares, or to the bucket that is nearest to their aspect ratio."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from training.data.buckets import Size, nearest_bucket
from training.data.photo import MIN_SIDE, Box, PhotoError, Upright

CropMode = Literal["bucket", "smart", "center", "letterbox"]

DETAIL_SIDE = 64
"""Short side, in pixels, of the copy in which the smart crop looks for detail."""
CENTER_WIDTH = 0.75
"""Standard deviation of the smart crop's centre weight, in halves of the long side: a preference for the middle."""


def checked_box(path: Path, box: Box, size: tuple[int, int]) -> Box:
    """Return ``box``. Raises PhotoError if it lies outside the photo of this size or is too small."""
    left, top, right, bottom = box
    if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        raise PhotoError(
            f"{path}: crop box {box} does not lie in the upright photo of {size[0]}×{size[1]} pixels. "
            "Give left, top, right, bottom."
        )
    if min(right - left, bottom - top) < MIN_SIDE:
        raise PhotoError(f"{path}: crop box {box} is under {MIN_SIDE} pixels on a side. Draw a larger one.")
    return box


def image_size(frame: Box, mode: CropMode, resolution: int) -> Size:
    """Return the width and height of the training image: that of a bucket, or a square."""
    if mode == "bucket":
        return nearest_bucket((frame[2] - frame[0], frame[3] - frame[1]), resolution)
    return resolution, resolution


def crop_window(photo: Upright, frame: Box, mode: CropMode, resolution: int) -> Box:
    """Return the part of ``frame`` to use: all of it for "letterbox", else a square over its full short side.

    The square lies in the middle for "center", and where the photo has the most detail for "smart". For "bucket" it is
    the largest part with the aspect ratio of the nearest bucket, in the middle.
    """
    if mode == "letterbox":
        return frame
    if mode == "bucket":
        return _centered(frame, image_size(frame, mode, resolution))
    left, top, right, bottom = frame
    side = min(right - left, bottom - top)
    slack = max(right - left, bottom - top) - side
    shift = _smart_shift(photo, frame, slack) if mode == "smart" else slack // 2
    if right - left > bottom - top:
        left += shift
    else:
        top += shift
    return left, top, left + side, top + side


def resize(photo: Upright, window: Box, size: Size, mode: CropMode) -> Image.Image:
    """Resize the window to ``size``. For "letterbox" the short side is padded with the mean colour of the edges."""
    image = photo.resized(window, fitted_size(window, size, mode))
    return image if image.size == size else padded(image, size, _edge_colour(image))


def fitted_size(window: Box, size: Size, mode: CropMode) -> Size:
    """Return the size of the resized window in an image of this size, without padding."""
    if mode != "letterbox":
        return size
    sides = (window[2] - window[0], window[3] - window[1])
    width, height = (max(1, round(side * max(size) / max(sides))) for side in sides)
    return width, height


def padded(image: Image.Image, size: Size, colour: Any) -> Image.Image:
    """Return the image in the middle of a larger one of one colour."""
    canvas = Image.new(image.mode, size, colour)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


def downscaled(photo: Upright, window: Box, short_side: int) -> np.ndarray:
    """Return the window, scaled to this short side, as float32 of shape (height, width, 3) in 0 to 255."""
    size = (window[2] - window[0], window[3] - window[1])
    scale = short_side / min(size)
    width, height = (round(side * scale) for side in size)
    # reducing_gap averages blocks first, which is faster on large photos and as good at this size
    scaled = photo.resized(window, (width, height), reducing_gap=3.0)
    return np.asarray(scaled, dtype=np.float32)


def _centered(frame: Box, size: Size) -> Box:
    """Return the largest part of the frame with the aspect ratio of ``size``, in the middle.

    A frame that has this aspect ratio up to rounding is returned as it is, so that a window is its own window.
    """
    left, top, right, bottom = frame
    width, height = right - left, bottom - top
    excess = width * size[1] - height * size[0]
    if 2 * abs(excess) > max(size):
        if excess > 0:
            width = round(height * size[0] / size[1])
        else:
            height = round(width * size[1] / size[0])
    left, top = (left + right - width) // 2, (top + bottom - height) // 2
    return left, top, left + width, top + height


def _smart_shift(photo: Upright, frame: Box, slack: int) -> int:
    """Return the offset (0 to ``slack``) along the long side at which the square contains the most gradient energy.

    The energy is the norm of the gradient over the three channels, summed across the short side. A small constant is
    added, so that a photo without detail is cropped in the middle, and a wide Gaussian gives weight to the middle.
    """
    pixels = downscaled(photo, frame, DETAIL_SIDE)
    if pixels.shape[0] > pixels.shape[1]:
        pixels = pixels.swapaxes(0, 1)
    along, across = np.gradient(pixels, axis=(1, 0))
    energy = np.sqrt((along**2 + across**2).sum(axis=2)).sum(axis=0)
    position = np.linspace(-1, 1, len(energy)) / CENTER_WIDTH
    weighted = (energy + 0.1 * energy.mean() + 1e-3) * np.exp(-(position**2) / 2)
    scores = np.convolve(weighted, np.ones(DETAIL_SIDE), mode="valid")
    return int((scores.argmax() + 0.5) / len(scores) * slack)


def _edge_colour(image: Image.Image) -> tuple[int, int, int]:
    pixels = np.asarray(image)
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = (round(value) for value in edges.mean(axis=0).tolist())
    return red, green, blue
