"""Draft of a subject on the page: the uploaded photos, their crop boxes and captions, and the values of the form.

{folder}/draft.json      the photos in order with their boxes and captions, and the values of the form
{folder}/photos/a.jpg    each photo as uploaded

A draft is not a run: ``copy_photos`` copies its photos to where runs read them.
"""

import functools
import json
import shutil
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hra_diffusion import records
from hra_diffusion.errors import UserError
from hra_diffusion.files import make_folder, write_text
from hra_diffusion.names import is_reserved, unused_name
from training.config import with_current_names
from training.data.caption_files import CAPTION_SUFFIXES
from training.data.checks import check_together
from training.data.cropping import CropMode
from training.data.dataset import load_dataset
from training.data.photo import MIN_SIDE, Box, Photo, PhotoError, PhotoWarning
from training.data.photo_files import MAX_PHOTOS, SUFFIXES

CAPTION_LENGTH = 300
MAX_MEGABYTES = 100
"""Largest file of a photo: 150 megapixels as JPEG or HEIC."""


_lock = threading.Lock()
"""Held while a draft is read or changed: the page sends several events at a time."""


@dataclass(frozen=True)
class DraftPhoto:
    """A photo of a draft: file name, crop box (None for the whole photo) and caption ("" for none)."""

    file: str
    box: Box | None = None
    caption: str = ""


@dataclass(frozen=True)
class Contents:
    """The photos of a draft and the plain ``values`` of the form."""

    photos: tuple[DraftPhoto, ...]
    values: dict[str, Any]


@dataclass(frozen=True)
class Draft:
    """A draft in a folder."""

    folder: Path

    def read(self) -> Contents:
        """Return the contents: empty without a folder, only the photos if draft.json is damaged."""
        files = sorted(path.name for path in self.folder.glob("photos/*"))
        found = records.read(self.folder / "draft.json", Contents, Contents(tuple(map(DraftPhoto, files)), {}))
        photos = tuple(photo for photo in found.photos if photo.file in files)
        return Contents(photos, with_current_names(found.values))

    def add(self, files: Sequence[Path], replace_all: bool = False) -> list[str]:
        """Copy photos, and caption files of the same names, into the draft. Return a message per unusable file.

        ``replace_all`` removes the present photos first.
        """
        photos_given = [path for path in files if path.suffix.lower() not in CAPTION_SUFFIXES]
        given = {path.stem for path in photos_given}
        captions: dict[str, Path] = {}
        refused: list[str] = []
        for path in (path for suffix in CAPTION_SUFFIXES for path in files if path.suffix.lower() == suffix):
            if (used := captions.setdefault(path.stem, path)) != path:
                refused.append(f"{path.name}: {used.name} is the caption of this photo, so this file is ignored")
        with _lock:
            if replace_all:
                shutil.rmtree(self.folder / "photos", ignore_errors=True)
            photos = [] if replace_all else list(self.read().photos)
            for path in photos_given:
                try:
                    photos.append(self._add_photo(path, photos, captions.get(path.stem)))
                except PhotoError as error:
                    refused.append(str(error).replace(str(path), path.name))
            for path in (path for stem, path in captions.items() if stem not in given):  # of photos added before
                stem = next(_stems(path, 0))
                if (at := next((i for i, photo in enumerate(photos) if Path(photo.file).stem == stem), None)) is None:
                    refused.append(f"{path.name}: no photo has this name")
                else:
                    photos[at] = replace(photos[at], caption=_caption(path))
            self._write(replace(self.read(), photos=tuple(photos)))
        return refused

    def get(self, file: str) -> DraftPhoto:
        """Return the photo with this file name. Raises PhotoError if it has been removed."""
        for photo in self.read().photos:
            if photo.file == file:
                return photo
        raise PhotoError("this photo has been removed; choose another")

    def remove(self, file: str) -> None:
        """Remove a photo, if it is still in the draft."""
        with _lock:
            contents = self.read()
            for photo in (photo for photo in contents.photos if photo.file == file):
                (self.folder / "photos" / photo.file).unlink(missing_ok=True)
            self._write(replace(contents, photos=tuple(photo for photo in contents.photos if photo.file != file)))

    def change(self, file: str, **changes: Any) -> None:
        """Change the crop box or caption of a photo, if it is still in the draft."""
        if "caption" in changes:
            changes["caption"] = _one_line(changes["caption"])
        with _lock:
            contents = self.read()
            photos = [replace(photo, **changes) if photo.file == file else photo for photo in contents.photos]
            self._write(replace(contents, photos=tuple(photos)))

    def save_values(self, **values: Any) -> None:
        """Store values of the form."""
        with _lock:
            contents = self.read()
            if (merged := contents.values | values) != contents.values:
                self._write(replace(contents, values=merged))

    def clear(self) -> None:
        """Delete the draft."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def photos(self, resolution: int, crop: CropMode = "smart") -> tuple[list[Photo], list[PhotoWarning]]:
        """Return the photos as cropped for training, with warnings. Damaged photos give only a warning."""
        photos: list[Photo] = []
        warnings: list[PhotoWarning] = []
        with _lock:
            for photo in self.read().photos:
                path = self.folder / "photos" / photo.file
                try:
                    loaded, own = _load_one(path, resolution, crop, photo.box)
                except PhotoError as error:
                    warnings.append(PhotoWarning("ignored", path, str(error)))
                else:
                    photos.append(loaded)
                    warnings += own
        return photos, [*warnings, *check_together(photos)]

    def photo(self, file: str, resolution: int, crop: CropMode = "smart") -> Photo:
        """Return one photo as cropped for training. Raises PhotoError if it has been removed."""
        with _lock:
            return _load_one(self.folder / "photos" / file, resolution, crop, self.get(file).box)[0]

    def copy_photos(self, folder: Path) -> dict[Path, Box]:
        """Copy the photos and captions to a new folder for a run. Return the crop boxes by path of the copies.

        Damaged photos are not copied. Raises PhotoError if no photo is left.
        """
        usable, boxes = {photo.path.name for photo in self.photos(MIN_SIDE)[0]}, {}
        photos = [photo for photo in self.read().photos if photo.file in usable]
        if not photos:
            raise PhotoError("No photos yet. Drop 3 to 10 photos of the subject first.")
        make_folder(folder)
        for photo in photos:
            copy = folder / photo.file
            shutil.copyfile(self.folder / "photos" / photo.file, copy)
            if photo.caption:
                write_text(copy.with_suffix(".txt"), photo.caption)
            if photo.box:
                boxes[copy] = photo.box
        return boxes

    def _add_photo(self, path: Path, others: Sequence[DraftPhoto], caption: Path | None) -> DraftPhoto:
        if len(others) == MAX_PHOTOS:
            raise PhotoError(f"{path.name}: the limit is {MAX_PHOTOS} photos; this one was not added")
        if (size := path.stat().st_size / 1e6) > MAX_MEGABYTES:
            raise PhotoError(
                f"{path.name}: {size:.0f} MB; a photo may have {MAX_MEGABYTES} MB at most. Save a smaller copy."
            )
        load_dataset([path], MIN_SIDE)  # raise now rather than when training starts
        # captions are found by stem, and file systems of Windows and macOS ignore case
        taken = {Path(photo.file).stem.casefold() for photo in others}
        stem = next(stem for stem in _stems(path, len(others)) if stem.casefold() not in taken)
        # load_dataset finds photos by suffix, but detects the format from the content
        file = f"{stem}{suffix if (suffix := path.suffix.lower()) in SUFFIXES else '.jpg'}"
        make_folder(self.folder / "photos")
        shutil.copyfile(path, self.folder / "photos" / file)
        return DraftPhoto(file, caption=_caption(caption) if caption else "")

    def _write(self, contents: Contents) -> None:
        make_folder(self.folder)
        write_text(self.folder / "draft.json", json.dumps(asdict(contents), ensure_ascii=False))


def free_photo_folder(output: Path, name: str) -> Path:
    """Return the path of a new folder for photos: ``{output}/photos/{name}``, numbered if that exists."""
    root = output / "photos"
    return root / unused_name(name, root)


def box_from_zoom(size: tuple[int, int], zoom: float, across: float, down: float) -> Box:
    """Return a square crop box in a photo of this size.

    ``zoom`` is the ratio of the short side to the side of the box. ``across`` and ``down`` give its position, 0 to 1.
    """
    side = max(MIN_SIDE, round(min(size) / zoom))
    left, top = round((size[0] - side) * across), round((size[1] - side) * down)
    return left, top, left + side, top + side


def zoom_from_box(size: tuple[int, int], box: Box) -> tuple[float, float, float]:
    """Return the zoom, across and down for which ``box_from_zoom`` returns this box."""
    side = box[2] - box[0]
    across, down = ((start / room if (room := whole - side) else 0.5) for start, whole in zip(box, size, strict=False))
    return min(size) / side, across, down


def _stems(path: Path, number: int) -> Iterator[str]:
    """Yield file stems for a photo: its own with unsafe characters replaced, then numbered variants."""
    stem = unicodedata.normalize("NFC", path.stem)
    stem = "".join(c if c.isalnum() or c in "-_ " else "-" for c in stem)[:40].strip() or "photo"
    yield f"{stem} photo" if is_reserved(stem) else stem
    while True:
        number += 1
        yield f"{stem} {number}"


def _caption(path: Path) -> str:
    return _one_line(path.read_text(encoding="utf-8", errors="replace"))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:CAPTION_LENGTH]


def _load_one(path: Path, resolution: int, crop: CropMode, box: Box | None) -> tuple[Photo, Sequence[PhotoWarning]]:
    if not path.is_file():
        raise PhotoError("this photo has been removed; choose another")
    return _load_cached(path, path.stat().st_mtime_ns, resolution, crop, box)


@functools.lru_cache(maxsize=200)
def _load_cached(
    path: Path, modified: int, resolution: int, crop: CropMode, box: Box | None
) -> tuple[Photo, Sequence[PhotoWarning]]:
    """Load a photo. Cached by file and crop, since decoding a large photo takes about a second."""
    try:
        dataset = load_dataset([path], resolution, crop, {path: box} if box else None)
    except UserError as error:
        raise PhotoError(str(error).replace(str(path), path.name)) from error
    return dataset.photos[0], dataset.warnings
