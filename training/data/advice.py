"""Advice on photos by their pixels alone: exposure, the size of the subject, one background or pose in all of them.

The thresholds were chosen on the 50 photos of ten subjects of the DreamBooth data set. Each warning there is right by
eye: one dark photo, two subjects with one background and one with one pose.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from training.data.photo import Photo, PhotoWarning

MIN_BRIGHT = 85
"""Least grey level (0 to 255) that 5 % of a photo must exceed, by weight. The photos have 103 to 255, but for one with
69; 38 of the 50 are darker at −3 EV and all at −4 EV."""
MAX_CLIPPED = 0.55
"""Largest share of a photo, by weight, that may be light and have a clipped colour channel. The photos have up to 0.48
(a cartoon on white), images of toybox 0.08; 18 of the 50 are reported at +2 EV, 24 at +3 EV."""
SMALL_SHARE, MIN_FOREGROUND = 0.025, 0.003
"""Largest and least share of colours that the edge lacks if the subject counts as small."""
CONCENTRATION = 0.9
"""Least share of these colours within a window of 30 % of the side. Of discs with a subject that fill 1 to 2 % of the
picture, 39 of 40 are found on plain backgrounds and 21 of 160 in scenes of the data set; none of the 50 photos is."""
MAX_BACKGROUND_DISTANCE = 0.15
"""Distance of the edges' colours up to which two backgrounds count as equal. The most different photos of a subject
have 0.41 or more, but for two subjects before one background (0.00 and 0.10)."""
MAX_POSE_DISTANCE = 0.12
"""The same for the directions of edges. The photos have 0.16 or more, but for a subject in one pose (0.09)."""
SIDE, CELLS, DIRECTIONS = 64, 8, 9
GREY = np.array([0.299, 0.587, 0.114])
_ACROSS = np.linspace(-1, 1, SIDE)
_WEIGHT = np.exp(-(_ACROSS[:, None] ** 2 + _ACROSS**2) / (2 * 0.45**2))
_WEIGHT /= _WEIGHT.sum()
"""Weight of each pixel, largest in the middle."""
_FROM_CENTRE = np.maximum(abs(_ACROSS[:, None]), abs(_ACROSS))


def check_exposure_and_size(photo: Photo) -> list[PhotoWarning]:
    """Return warnings for a photo that is too dark or too bright, or whose subject is small in the frame."""
    name = photo.path.name
    pixels = np.asarray(photo.image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    if _bright_level(pixels) < MIN_BRIGHT:
        text = "too dark. The adapter would learn the darkness, and little of the subject's colours. Brighten it."
        return [PhotoWarning("dark", photo.path, f"{name}: {text}")]
    if _subject_is_small(photo.image):
        text = "the subject seems small. The adapter would learn the scene rather than the subject. Crop it closer."
        return [PhotoWarning("far", photo.path, f"{name}: {text}")]
    on_white = (pixels.min(axis=2) >= 250)[_FROM_CENTRE > 0.7].mean() > 0.98
    clipped = (_WEIGHT * ((pixels.max(axis=2) >= 250) & (pixels @ GREY > 200))).sum()
    if clipped > MAX_CLIPPED and not on_white:
        text = "too bright: much of it is pure white or a pure colour, where no detail is left to learn. Use another."
        return [PhotoWarning("bright", photo.path, f"{name}: {text}")]
    return []


def check_variety(photos: Sequence[Photo]) -> list[PhotoWarning]:
    """Return warnings if three or more photos all have one background or one pose. They name the first photo."""
    if len(photos) < 3:
        return []
    found = []
    if _distances([_edge_colours(photo.image) for photo in photos]).max() <= MAX_BACKGROUND_DISTANCE:
        found.append(("background", "one background in all. It may become part of the subject, and new places come out "
                      "like it. Add photos in other places."))  # fmt: skip
    if _distances([_edge_directions(photo.image) for photo in photos]).max() <= MAX_POSE_DISTANCE:
        found.append(("pose", "one pose in all. Other views and poses will be guessed. Add photos from other sides."))
    first = photos[0].path
    return [PhotoWarning(kind, first, f"{first.name} and all others: {text}") for kind, text in found]


def coverage(photos: Sequence[Photo]) -> str:
    """Return a line that says what photos cover, "" for less than two: backgrounds, poses and brightness."""
    if len(photos) < 2:
        return ""
    backgrounds = _groups([_edge_colours(photo.image) for photo in photos], MAX_BACKGROUND_DISTANCE)
    poses = _groups([_edge_directions(photo.image) for photo in photos], MAX_POSE_DISTANCE)
    levels = [float((_WEIGHT * np.asarray(photo.image.convert("L").resize((SIDE, SIDE)))).sum()) for photo in photos]
    light = "light and dark pictures" if max(levels) > 1.5 * min(levels) else "one brightness"
    return f"these {len(photos)} photos cover: {_count(backgrounds, 'background')}, {_count(poses, 'view')}, {light}"


def _count(number: int, noun: str) -> str:
    return f"one {noun}" if number == 1 else f"{number} {noun}s"


def _bright_level(pixels: np.ndarray) -> float:
    """The grey level that 5 % of the weight exceeds."""
    grey = (pixels @ GREY).ravel()
    order = np.argsort(grey)
    return float(grey[order][np.searchsorted(_WEIGHT.ravel()[order].cumsum(), 0.95)])


def _subject_is_small(image: Image.Image) -> bool:
    """Return whether the colours that the edge of a photo lacks fill a small part of it, all in one place.

    A colour belongs to the foreground if the edge has less than half of its share of the whole photo.
    """
    bins = _colour_bins(image)
    edge, whole = _histogram(bins, _FROM_CENTRE > 0.8), _histogram(bins, _FROM_CENTRE >= 0)
    foreground = (edge < 0.5 * whole)[tuple(np.moveaxis(bins, 2, 0))]
    if not MIN_FOREGROUND < foreground.mean() < SMALL_SHARE:
        return False
    window = round(0.3 * SIDE)
    sums = np.pad(foreground.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[window:, window:] - sums[:-window, window:] - sums[window:, :-window] + sums[:-window, :-window]
    return bool(inside.max() >= CONCENTRATION * foreground.sum())


def _colour_bins(image: Image.Image) -> np.ndarray:
    """Luminance in 6 and chrominance in 10 × 10 bins for each pixel of a small copy (SIDE, SIDE, 3)."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX).convert("YCbCr")
    pixels = np.asarray(small, dtype=np.float64)
    return np.clip((pixels - (0, 64, 64)) * (6 / 256, 10 / 128, 10 / 128), 0, (5, 9, 9)).astype(int)


def _histogram(bins: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Share of each colour among the pixels of a mask, smoothed over neighbouring bins (6, 10, 10)."""
    counts = np.zeros((6, 10, 10))
    np.add.at(counts, tuple(bins[mask].T), 1.0)
    for axis in range(3):
        padded = np.pad(counts, [(1, 1) if axis == other else (0, 0) for other in range(3)])
        low, mid, high = (np.take(padded, np.arange(counts.shape[axis]) + shift, axis) for shift in range(3))
        counts = (low + 2 * mid + high) / 4
    return counts / mask.sum()


def _edge_colours(image: Image.Image) -> np.ndarray:
    """Square roots of the colour histogram of the outer 15 % on each side (600,), normalized."""
    shares = _histogram(_colour_bins(image), _FROM_CENTRE > 0.7)
    return np.sqrt(shares / shares.sum()).ravel()


def _edge_directions(image: Image.Image) -> np.ndarray:
    """Square roots of a histogram of gradient directions in 8 × 8 cells (576,), normalized. The middle weighs most.

    After Dalal and Triggs, "Histograms of oriented gradients for human detection", 2005.
    """
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    down, across = np.gradient(grey)
    direction = ((np.arctan2(down, across) % np.pi) / np.pi * DIRECTIONS).astype(int).clip(max=DIRECTIONS - 1)
    row, column = np.indices(grey.shape) // (SIDE // CELLS)
    cells = np.full((CELLS, CELLS, DIRECTIONS), 1e-9)
    np.add.at(cells, (row, column, direction), np.sqrt(np.hypot(down, across)) * _WEIGHT)
    return np.sqrt(cells / cells.sum()).ravel()


def _distances(rows: Sequence[np.ndarray]) -> np.ndarray:
    """1 − the Bhattacharyya coefficient of each pair of square roots of histograms (N, N)."""
    together = np.stack(rows)
    return 1 - together @ together.T


def _groups(rows: Sequence[np.ndarray], distance: float) -> int:
    """Number of groups of histograms, each within this distance of the group's first."""
    firsts: list[np.ndarray] = []
    for row in rows:
        if all(1 - row @ first > distance for first in firsts):
            firsts.append(row)
    return len(firsts)
