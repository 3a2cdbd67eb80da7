"""The photos of one subject: found, decoded, cropped and checked. The files themselves are only read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from training.data.advice import coverage
from training.data.caption_files import read_caption
from training.data.checks import check_photo, check_together
from training.data.cropping import CropMode, checked_box, crop_window, resize_to_square
from training.data.decoding import decode
from training.data.photo import Box, Photo, PhotoError, PhotoWarning
from training.data.photo_files import ignored_warning, resolve, search


@dataclass(frozen=True)
class Dataset:
    """The photos of one subject, sorted by path, with warnings and the ignored files of their folders."""

    photos: tuple[Photo, ...]
    warnings: tuple[PhotoWarning, ...]
    ignored: tuple[Path, ...]

    @property
    def coverage(self) -> tuple[str, ...]:
        """A line for each subject with several photos that says what they show."""
        numbers = sorted({photo.concept for photo in self.photos})
        lines = (coverage([photo for photo in self.photos if photo.concept == number]) for number in numbers)
        return tuple(filter(None, lines))


def load_dataset(
    paths: Sequence[Path], resolution: int, crop: CropMode = "smart", boxes: Mapping[Path, Box] | None = None,
    concepts: Mapping[Path, int] | None = None,
) -> Dataset:  # fmt: skip
    """Load 1 to 50 photos and crop each to a square.

    Args:
        paths: Files and folders of photos. Subfolders are not searched.
        resolution: Side of the squares in pixels.
        crop: "smart" chooses the square with the most detail, "center" the middle one. "letterbox" keeps the whole
            photo and pads it with the mean colour of its edges.
        boxes: Crop boxes by photo, in pixels of the upright photo. A box is applied before ``crop``.
        concepts: Number of each photo's subject, by default the first. Photos are compared within a subject.

    Raises PhotoError at the first photo, caption or box that cannot be used.
    """
    if crop not in get_args(CropMode):
        raise PhotoError(f"unknown crop mode {crop!r}. Use smart, center or letterbox.")
    found = search(paths)
    box_of = {resolve(path): box for path, box in (boxes or {}).items()}
    for path in box_of.keys() - found.photos.keys():
        raise PhotoError(f"{path}: has a crop box but is not among the photos. Add the photo or remove the box.")
    loaded = [_load(path, found.photos[path], resolution, crop, box_of.get(path)) for path in sorted(found.photos)]
    photos = tuple(replace(photo, concept=(concepts or {}).get(photo.path, 0)) for photo, _ in loaded)
    warnings = [warning for _, own in loaded for warning in own]
    for number in sorted({photo.concept for photo in photos}):
        warnings += check_together([photo for photo in photos if photo.concept == number])
    warnings += map(ignored_warning, found.ignored)
    return Dataset(photos, tuple(warnings), tuple(found.ignored))


def _load(
    path: Path, given: Path, resolution: int, crop: CropMode, box: Box | None
) -> tuple[Photo, list[PhotoWarning]]:
    """Load the photo at a resolved path; its caption lies beside the path as ``given``."""
    upright = decode(path)
    frame = checked_box(path, box, upright.size) if box else (0, 0, *upright.size)
    window = crop_window(upright, frame, crop)
    image = resize_to_square(upright, window, resolution)
    photo = Photo(path, image, read_caption(given), window, frame, upright.size, upright.sha256)
    return photo, check_photo(photo, upright)
