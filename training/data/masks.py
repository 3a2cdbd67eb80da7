"""Masks of the subject: files beside the photos, transparency, GrabCut and rembg.

A mask is a greyscale image of a whole photo, white for the subject. It may be smaller than the photo.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from training.data.buckets import Size
from training.data.cropping import CropMode, fitted_size, padded
from training.data.decoding import alpha_channel, decode
from training.data.photo import Box, PhotoError, Upright
from training.data.photo_files import mask_path

MaskMode = Literal["off", "file", "alpha", "auto", "rembg"]
"""Where masks come from. Each but "off" includes files, and the last two also transparency."""

GRABCUT_SIDE = 512
"""Long side, in pixels, of the copy that GrabCut works on."""
GRABCUT_ROUNDS = 5
MARGIN = 0.08
"""Border of a photo without a crop box that GrabCut takes for background, as a share of each side."""
MIN_SHARE, MAX_SHARE = 0.01, 0.99
"""A mask made here of a smaller or larger part of the crop is not used."""


def find_mask(path: Path, given: Path, photo: Upright, box: Box | None, mode: MaskMode) -> Image.Image | None:
    """Return the mask of the photo at a resolved path, whose mask file lies beside the path as ``given``, or None.

    Raises PhotoError for an unreadable mask or one of another size, or if a package is missing.
    """
    if mode == "off":
        return None
    if (file := mask_path(given)).is_file():
        return read_mask(file, photo.size)
    alpha = alpha_channel(path) if mode != "file" else None
    if alpha is not None or mode in ("file", "alpha"):
        return alpha
    return grabcut(photo, box) if mode == "auto" else rembg(photo)


def read_mask(path: Path, size: Size) -> Image.Image:
    """Return the mask in a file. Raises PhotoError if it is unreadable or not of the photo's size."""
    try:
        mask = decode(path, min_side=1)
    except PhotoError as error:
        reason = str(error).removeprefix(f"{path}: ").partition(". ")[0]
        raise PhotoError(f"{path}: the mask can't be read ({reason}). Save it again as PNG, or delete it.") from error
    require_mask_size(path, mask.size, size)
    return mask.image.convert("L")


def require_mask_size(path: Path, size: Size, photo: Size) -> None:
    """Raise PhotoError unless the mask in a file has the size of its photo."""
    if size != photo:
        raise PhotoError(
            f"{path}: the mask has {size[0]}×{size[1]} pixels, but the upright photo has {photo[0]}×{photo[1]}. "
            "Save the mask at the size of the photo."
        )


def cropped_mask(mask: Image.Image, photo: Size, window: Box, size: Size, mode: CropMode) -> Image.Image:
    """Return the mask of a photo of size ``photo``, cropped and resized as the photo; black where that is padded."""
    across, down = mask.width / photo[0], mask.height / photo[1]
    box = window[0] * across, window[1] * down, window[2] * across, window[3] * down
    return padded(mask.resize(fitted_size(window, size, mode), Image.Resampling.BILINEAR, box), size, 0)


def is_found(mask: Image.Image) -> bool:
    """Return whether a cropped mask that was made here shows a subject in front of something."""
    return MIN_SHARE <= float(np.asarray(mask).mean()) / 255 <= MAX_SHARE


def grabcut(photo: Upright, box: Box | None) -> Image.Image:
    """Return the mask that GrabCut finds (Rother et al. 2004), at a long side of at most ``GRABCUT_SIDE`` pixels.

    What lies outside the crop box is background; without a box, or if it is the whole photo, a narrow border is.
    Raises PhotoError if OpenCV is missing.
    """
    cv2 = _imported("cv2", "--mask auto needs OpenCV: pip install 'hra-diffusion[masks]'")
    scale = min(1.0, GRABCUT_SIDE / max(photo.size))
    width, height = (max(1, round(side * scale)) for side in photo.size)
    whole = (0, 0, *photo.size)
    pixels = np.asarray(photo.resized(whole, (width, height), reducing_gap=3.0))
    if box and box != whole:
        left, top, right, bottom = (round(edge * scale) for edge in box)
    else:
        left, top = max(1, round(width * MARGIN)), max(1, round(height * MARGIN))
        right, bottom = width - left, height - top
    labels = np.zeros((height, width), np.uint8)
    cv2.setRNGSeed(0)
    cv2.grabCut(
        np.ascontiguousarray(pixels[..., ::-1]), labels, (left, top, right - left, bottom - top),
        np.zeros((1, 65)), np.zeros((1, 65)), GRABCUT_ROUNDS, cv2.GC_INIT_WITH_RECT,
    )  # fmt: skip
    return Image.fromarray(np.where(labels & 1, 255, 0).astype(np.uint8))  # certain and probable foreground are odd


def rembg(photo: Upright) -> Image.Image:
    """Return the mask that rembg's default model finds. Raises PhotoError if rembg is missing.

    rembg downloads the weights on first use.
    """
    library = _imported("rembg", "--mask rembg needs rembg: pip install 'rembg[cpu]'")
    return library.remove(photo.image, only_mask=True).convert("L")


def _imported(name: str, advice: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise PhotoError(f"{advice}, or give masks as files and use --mask file") from None
