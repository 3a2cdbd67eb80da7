"""The photos of one subject: found, decoded, cropped and checked. The files themselves are only read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from PIL import Image

from training.data.advice import coverage
from training.data.caption_files import read_caption
from training.data.checks import check_photo, check_together
from training.data.cropping import CropMode, checked_box, crop_window, image_size, resize
from training.data.decoding import decode
from training.data.masks import MaskMode, cropped_mask, find_mask, is_found
from training.data.photo import Box, Photo, PhotoError, PhotoWarning, Upright
from training.data.photo_files import ignored_warning, mask_path, resolve, search


@dataclass(frozen=True)
class Dataset:
    """The photos of one subject, sorted by path, with warnings and the ignored files of their folders."""

    photos: tuple[Photo, ...]
    warnings: tuple[PhotoWarning, ...]
    ignored: tuple[Path, ...]

    @property
    def coverage(self) -> tuple[str, ...]:
        """A line for each subject with several photos that says what they show."""
        return tuple(filter(None, map(coverage, _by_concept(self.photos))))


def load_dataset(
    paths: Sequence[Path], resolution: int, crop: CropMode = "smart", boxes: Mapping[Path, Box] | None = None,
    mask: MaskMode = "file", concepts: Mapping[Path, int] | None = None,
) -> Dataset:  # fmt: skip
    """Load 1 to 50 photos and crop each to a square or a bucket.

    Args:
        paths: Files and folders of photos. Subfolders are not searched.
        resolution: Side of the squares in pixels.
        crop: "bucket" keeps the aspect ratio up to a small cut. "smart" chooses the square with the most detail,
            "center" the middle one. "letterbox" keeps the whole photo and pads it with the mean colour of its edges.
        boxes: Crop boxes by photo, in pixels of the upright photo. A box is applied before ``crop``.
        mask: Where the masks of the photos come from (see ``masks``).
        concepts: Number of each photo's subject, by default the first. Photos are compared within a subject.

    Raises PhotoError at the first photo, caption, mask or box that cannot be used.
    """
    if crop not in get_args(CropMode):
        raise PhotoError(f"unknown crop mode {crop!r}. Use bucket, smart, center or letterbox.")
    found = search(paths)
    box_of = {resolve(path): box for path, box in (boxes or {}).items()}
    for path in box_of.keys() - found.photos.keys():
        raise PhotoError(f"{path}: has a crop box but is not among the photos. Add the photo or remove the box.")
    loaded = [
        _load(path, given, resolution, crop, box_of.get(path), mask) for path, given in sorted(found.photos.items())
    ]
    photos = tuple(replace(photo, concept=(concepts or {}).get(photo.path, 0)) for photo, _ in loaded)
    warnings = [warning for _, own in loaded for warning in own]
    for together in _by_concept(photos):
        warnings += check_together(together)
    warnings += map(ignored_warning, found.ignored)
    return Dataset(photos, tuple(warnings), tuple(found.ignored))


def _by_concept(photos: Sequence[Photo]) -> list[list[Photo]]:
    """Return the photos of each subject, in the order of their numbers."""
    numbers = sorted({photo.concept for photo in photos})
    return [[photo for photo in photos if photo.concept == number] for number in numbers]


def _load(
    path: Path, given: Path, resolution: int, crop: CropMode, box: Box | None, mask: MaskMode
) -> tuple[Photo, list[PhotoWarning]]:
    """Load the photo at a resolved path; its caption and mask lie beside the path as ``given``."""
    upright = decode(path)
    frame = checked_box(path, box, upright.size) if box else (0, 0, *upright.size)
    window = crop_window(upright, frame, crop, resolution)
    size = image_size(window, crop, resolution)
    image = resize(upright, window, size, crop)
    photo = Photo(path, image, read_caption(given), window, frame, upright.size, upright.sha256)
    if (found := find_mask(path, given, upright, box, mask)) is None:
        return photo, check_photo(photo, upright)
    return _masked(photo, cropped_mask(found, upright.size, window, size, crop), given, upright)


def _masked(photo: Photo, mask: Image.Image, given: Path, upright: Upright) -> tuple[Photo, list[PhotoWarning]]:
    """Return the photo with its cropped mask, unless that was made here and shows no subject. Raises PhotoError."""
    warnings = check_photo(photo, upright)
    if (file := mask_path(given)).is_file():
        if not mask.getbbox():
            raise PhotoError(
                f"{file}: the mask is black in the whole crop. Paint the subject white, or delete the mask."
            )
    elif not is_found(mask):
        message = f"{photo.path.name}: no subject was found for its mask, so all of it is trained. Paint a mask."
        return photo, [*warnings, PhotoWarning("mask", photo.path, message)]
    return replace(photo, mask=mask), warnings
