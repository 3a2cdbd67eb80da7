"""Warn of photos that make poor training data: small, blurred, duplicates, outliers, and what ``advice`` finds.

The thresholds were calibrated on the 50 photos of ten subjects of the DreamBooth data set.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from training.data.advice import check_exposure_and_size, check_variety
from training.data.cropping import downscaled
from training.data.photo import Box, Photo, PhotoWarning, Upright

MIN_SHARPNESS = 2.75
"""The photos score 4.3 to 18 at 64 to 512 pixels, even at 0.4 of their contrast, and images of toybox at least 3.3.
Under a Gaussian blur they score 1.9 to 3.4 (0.3 % of the side) and 0.7 to 1.7 (0.5 %)."""
SHARPNESS_SIDE = 256
MAX_DUPLICATE_DISTANCE = 0.015
"""The closest two photos of one subject have a distance of 0.028 (a cartoon on white; 0.055 otherwise), images of
toybox 0.024. A photo has a distance of up to 0.003 from its copy at JPEG quality 30, and of up to 0.013 from its copy
with 1 % cut off each edge."""
THUMBNAIL_SIDE = 16
MAX_COLOUR_DISTANCE = 0.28
"""Within a subject, a photo has a distance of up to 0.24 from its nearest neighbour. Photos of another subject have a
median distance of 0.21, and a quarter of them more than 0.29: the check finds few outliers, with few false alarms."""
PALETTE_SIDE = 48


def check_photo(photo: Photo, upright: Upright) -> list[PhotoWarning]:
    """Return warnings for a photo: enlarged, blurred, exposure, small subject. ``upright`` is the uncropped photo."""
    warnings = []
    left, top, right, bottom = photo.crop
    side, resolution = max(right - left, bottom - top), max(photo.image.size)
    if side < resolution:
        message = f"{side} pixels enlarged to {resolution} look soft. Use a larger photo, or train at {side} or less."
        warnings.append(PhotoWarning("small", photo.path, f"{photo.path.name}: {message}"))
    if _sharpness(upright, photo.crop) < MIN_SHARPNESS:
        message = "blurred, or almost without detail. The adapter would learn the blur too. Use a sharper photo."
        warnings.append(PhotoWarning("blurred", photo.path, f"{photo.path.name}: {message}"))
        return warnings
    return [*warnings, *check_exposure_and_size(photo)]


def check_together(photos: Sequence[Photo]) -> list[PhotoWarning]:
    """Return warnings that depend on all photos: duplicates, outliers, one background or one pose in all."""
    duplicates = _duplicates(photos)
    repeated = [warning.photo for warning in duplicates]
    distinct = [photo for photo in photos if photo.path not in repeated]
    return [*duplicates, *_outliers(photos), *check_variety(distinct)]


def _sharpness(photo: Upright, window: Box) -> float:
    """Variance of the Laplacian, divided by its variance after a 3×3 blur, at a short side of at most 256 pixels.

    The variance alone grows with contrast and texture; the share that the blur removes does not. Fine detail loses
    most of its variance, whereas a blurred photo has little left to lose (after Crété et al., "The blur effect", 2007).
    Adding 1 to the denominator keeps rounding noise from counting as detail.
    """
    short = min(window[2] - window[0], window[3] - window[1])
    grey = downscaled(photo, window, min(short, SHARPNESS_SIDE)) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return float(_laplacian(grey).var() / (_laplacian(_blur(grey)).var() + 1))


def _laplacian(grey: np.ndarray) -> np.ndarray:
    return 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]


def _blur(grey: np.ndarray) -> np.ndarray:
    rows = (grey[:-2] + 2 * grey[1:-1] + grey[2:]) / 4
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4


def _duplicates(photos: Sequence[Photo]) -> list[PhotoWarning]:
    """Return one warning for each photo that repeats an earlier one."""
    thumbnails = [_thumbnail(photo.image) for photo in photos]
    warnings = []
    for index, photo in enumerate(photos):
        for other_index, other in enumerate(photos[:index]):
            distance = 1 - thumbnails[index] @ thumbnails[other_index]
            if photo.sha256 == other.sha256 or distance < MAX_DUPLICATE_DISTANCE:
                warnings.append(_duplicate_warning(photo, other))
                break
    return warnings


def _duplicate_warning(photo: Photo, other: Photo) -> PhotoWarning:
    relation = "the same file as" if photo.sha256 == other.sha256 else "looks the same as"
    which = other.path if other.path.name == photo.path.name else other.path.name
    message = f"{photo.path.name}: {relation} {which}, which then counts twice. Keep one of them."
    return PhotoWarning("duplicate", photo.path, message)


def _thumbnail(image: Image.Image) -> np.ndarray:
    """A 16×16 thumbnail with mean 0 and norm 1. Dot products are correlations: brightness and contrast cancel out."""
    size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS), dtype=np.float32).ravel()
    pixels = pixels - pixels.mean()
    return pixels / max(float(np.linalg.norm(pixels)), 1.0)


def _outliers(photos: Sequence[Photo]) -> list[PhotoWarning]:
    """Return one warning for each photo whose colours are far from those of every other, given at least three."""
    if len(photos) < 3:
        return []
    palettes = np.stack([_palette(photo.image) for photo in photos])
    distances = 1 - palettes @ palettes.T + 2 * np.eye(len(photos))
    text = "its colours are nothing like the other photos'. Is it the same subject? If not, remove it."
    return [
        PhotoWarning("different", photo.path, f"{photo.path.name}: {text}")
        for photo, nearest in zip(photos, distances.min(axis=1), strict=True)
        if nearest > MAX_COLOUR_DISTANCE
    ]


def _palette(image: Image.Image) -> np.ndarray:
    """Square roots of a histogram of 12 hues and 5 greys (17,). Dot products are Bhattacharyya coefficients.

    A pixel counts as a hue in proportion to its saturation and as a grey for the rest. Central pixels weigh the most.
    """
    small = image.resize((PALETTE_SIDE, PALETTE_SIDE), Image.Resampling.LANCZOS).convert("HSV")
    hue, saturation, value = np.asarray(small, dtype=np.float64).reshape(-1, 3).T / 255
    across = np.linspace(-1, 1, PALETTE_SIDE)
    weight = np.exp(-(across[:, None] ** 2 + across**2) / (2 * 0.45**2)).ravel()
    hues = np.histogram((hue * 12) % 12, 12, (0, 12), weights=weight * saturation)[0]
    hues = (hues + np.roll(hues, 1) / 2 + np.roll(hues, -1) / 2) / 2  # similar hues share their weight
    greys = np.histogram(value, 5, (0, 1), weights=weight * (1 - saturation))[0]
    both = np.concatenate([hues, greys])
    return np.sqrt(both / both.sum())
