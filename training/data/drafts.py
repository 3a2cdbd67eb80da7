"""A subject in preparation: photos as they came, what is said about them, and how they will be cut; all in one folder.

{folder}/draft.json          the photos in order, their boxes and captions, and the form's values
{folder}/photos/0001 a.jpg   each photo as it was given

Nothing in it is a run yet; ``settle`` copies it to where runs read their photos.
"""

import functools
import json
import shutil
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hra_diffusion.errors import UserError
from hra_diffusion.files import is_reserved, make_folder, read_json, validated_name, write_text
from training.config import with_current_names
from training.data.caption_files import CAPTION_SUFFIXES
from training.data.checks import check_together
from training.data.cropping import CropMode
from training.data.dataset import load_dataset
from training.data.photo import MIN_SIDE, Box, Photo, PhotoError, PhotoWarning
from training.data.photo_files import MAX_PHOTOS, SUFFIXES

CAPTION_LENGTH = 300
MAX_MEGABYTES = 100
"""Of one photo: 150 megapixels as JPEG or HEIC."""


_changing = threading.Lock()
"""A page's events come several at a time; each must see what the one before it wrote, and all of it."""


@dataclass(frozen=True)
class DraftPhoto:
    """One photo: its file's name in the draft, the part of it to use (None: all), its caption ("": none)."""

    file: str
    box: Box | None = None
    caption: str = ""


@dataclass(frozen=True)
class Contents:
    """What a draft holds. ``values``: the form's fields, plain values."""

    photos: tuple[DraftPhoto, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Draft:
    """The folder of a subject in preparation."""

    folder: Path

    def read(self) -> Contents:
        """What is in it; an empty draft where nothing is. Where draft.json is damaged, the photos without the rest."""
        there = sorted(path.name for path in self.folder.glob("photos/*"))
        found = read_json(self.folder / "draft.json")
        if not isinstance(found, dict):
            return Contents(tuple(map(DraftPhoto, there)))
        photos = [DraftPhoto(p["file"], tuple(p["box"]) if p["box"] else None, p["caption"]) for p in found["photos"]]
        return Contents(tuple(photo for photo in photos if photo.file in there), with_current_names(found["values"]))

    def add(self, files: Sequence[Path], anew: bool = False) -> list[str]:
        """Take photos, and captions (.txt or .caption) of the same name, in; returns a line for each unusable file.

        ``anew``: in place of the photos that are there.
        """
        photos_given = [path for path in files if path.suffix.lower() not in CAPTION_SUFFIXES]
        given = {path.stem for path in photos_given}
        captions: dict[str, Path] = {}
        refused: list[str] = []
        for path in (path for suffix in CAPTION_SUFFIXES for path in files if path.suffix.lower() == suffix):
            if (used := captions.setdefault(path.stem, path)) != path:
                refused.append(f"{path.name}: {used.name} is the caption of this photo, and this one is left out")
        with _changing:
            if anew:
                shutil.rmtree(self.folder / "photos", ignore_errors=True)
            photos = [] if anew else list(self.read().photos)
            for path in photos_given:
                try:
                    photos.append(self._take(path, photos, captions.get(path.stem)))
                except PhotoError as error:
                    refused.append(str(error).replace(str(path), path.name))
            for path in (path for stem, path in captions.items() if stem not in given):  # of photos that came before
                stem = next(_stems(path, 0))
                if (at := next((i for i, photo in enumerate(photos) if Path(photo.file).stem == stem), None)) is None:
                    refused.append(f"{path.name}: there is no photo of this name to put the caption to")
                else:
                    photos[at] = replace(photos[at], caption=_caption(path))
            self._write(replace(self.read(), photos=tuple(photos)))
        return refused

    def find(self, file: str) -> DraftPhoto:
        """A photo by its file's name. Raises PhotoError if it is not there any more."""
        for photo in self.read().photos:
            if photo.file == file:
                return photo
        raise PhotoError("this photo is not here any more; choose another")

    def remove(self, file: str) -> None:
        """Take one photo out again; nothing happens to the others if it is out already."""
        with _changing:
            contents = self.read()
            for photo in (photo for photo in contents.photos if photo.file == file):
                (self.folder / "photos" / photo.file).unlink(missing_ok=True)
            self._write(replace(contents, photos=tuple(photo for photo in contents.photos if photo.file != file)))

    def change(self, file: str, **changes: Any) -> None:
        """Give one photo another box or caption, if it is still there."""
        if "caption" in changes:
            changes["caption"] = _one_line(changes["caption"])
        with _changing:
            contents = self.read()
            photos = [replace(photo, **changes) if photo.file == file else photo for photo in contents.photos]
            self._write(replace(contents, photos=tuple(photos)))

    def keep(self, **values: Any) -> None:
        """Remember values of the form."""
        with _changing:
            contents = self.read()
            if (now := contents.values | values) != contents.values:
                self._write(replace(contents, values=now))

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def photos(self, resolution: int, crop: CropMode = "smart") -> tuple[list[Photo], list[PhotoWarning]]:
        """The photos as they will be learned from, and what to look at in them; damaged ones are only named."""
        photos: list[Photo] = []
        notes: list[PhotoWarning] = []
        with _changing:
            for photo in self.read().photos:
                path = self.folder / "photos" / photo.file
                try:
                    taken, own = _ingest_one(path, resolution, crop, photo.box)
                except PhotoError as error:
                    notes.append(PhotoWarning("ignored", path, str(error)))
                else:
                    photos.append(taken)
                    notes += own
        return photos, [*notes, *check_together(photos)]

    def photo(self, file: str, resolution: int, crop: CropMode = "smart") -> Photo:
        """One of them. Raises PhotoError if it is not there any more."""
        with _changing:
            return _ingest_one(self.folder / "photos" / file, resolution, crop, self.find(file).box)[0]

    def settle(self, folder: Path) -> dict[Path, Box]:
        """Copy photos and captions into a new folder that runs can read; returns the boxes by the copies' paths.

        Damaged photos stay behind. Raises PhotoError if there are no others.
        """
        whole, boxes = {photo.path.name for photo in self.photos(MIN_SIDE)[0]}, {}
        photos = [photo for photo in self.read().photos if photo.file in whole]
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

    def _take(self, path: Path, others: Sequence[DraftPhoto], caption: Path | None) -> DraftPhoto:
        if len(others) == MAX_PHOTOS:
            raise PhotoError(f"{path.name}: {MAX_PHOTOS} photos are the most; it was left out")
        if (size := path.stat().st_size / 1e6) > MAX_MEGABYTES:
            raise PhotoError(
                f"{path.name}: {size:.0f} MB; a photo may have {MAX_MEGABYTES} MB at most: save it smaller"
            )
        load_dataset([path], MIN_SIDE)  # refused here, not when training starts
        # a caption has its photo's stem; disks of Windows and macOS ignore case
        taken = {Path(photo.file).stem.casefold() for photo in others}
        stem = next(stem for stem in _stems(path, len(others)) if stem.casefold() not in taken)
        # a folder is searched by suffix; what the photo is, its content decides
        file = f"{stem}{suffix if (suffix := path.suffix.lower()) in SUFFIXES else '.jpg'}"
        make_folder(self.folder / "photos")
        shutil.copyfile(path, self.folder / "photos" / file)
        return DraftPhoto(file, caption=_caption(caption) if caption else "")

    def _write(self, contents: Contents) -> None:
        make_folder(self.folder)
        write_text(self.folder / "draft.json", json.dumps(asdict(contents), ensure_ascii=False))


def free_album(output: Path, name: str) -> Path:
    """A folder for the photos of a new subject: ``{output}/photos/{name}``, numbered where that is taken."""
    root, number, place = output / "photos", 2, validated_name(name)
    while (root / place).exists():
        place, number = f"{name} {number}", number + 1
    return root / place


def zoomed(size: tuple[int, int], zoom: float, across: float, down: float) -> Box:
    """The square box of a photo of this size: ``zoom`` 1 takes the whole short side, 2 half of it; ``across`` and
    ``down`` (0 to 1) say where."""
    side = max(MIN_SIDE, round(min(size) / zoom))
    left, top = round((size[0] - side) * across), round((size[1] - side) * down)
    return left, top, left + side, top + side


def zoom_of(size: tuple[int, int], box: Box) -> tuple[float, float, float]:
    """The zoom, across and down by which ``zoomed`` makes this box of a photo of this size."""
    side = box[2] - box[0]
    across, down = ((start / room if (room := whole - side) else 0.5) for start, whole in zip(box, size, strict=False))
    return min(size) / side, across, down


def _stems(path: Path, number: int) -> Iterator[str]:
    """Names for a photo's copy, without suffix: its own, made harmless, then numbered ones."""
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


def _ingest_one(path: Path, resolution: int, crop: CropMode, box: Box | None) -> tuple[Photo, Sequence[PhotoWarning]]:
    if not path.is_file():
        raise PhotoError("this photo is not here any more; choose another")
    return _ingested(path, path.stat().st_mtime_ns, resolution, crop, box)


@functools.lru_cache(maxsize=200)
def _ingested(
    path: Path, changed: int, resolution: int, crop: CropMode, box: Box | None
) -> tuple[Photo, Sequence[PhotoWarning]]:
    """Decoding a phone's photo takes a moment: once for each way of cutting it."""
    try:
        album = load_dataset([path], resolution, crop, {path: box} if box else None)
    except UserError as error:
        raise PhotoError(str(error).replace(str(path), path.name)) from error
    return album.photos[0], album.warnings
