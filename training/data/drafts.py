"""Draft of a subject on the page: the photos, their crop boxes, masks and captions, and the values of the form.

{folder}/draft.json             the photos in order with their boxes and captions, and the values of the form
{folder}/photos/a.jpg           each photo as uploaded
{folder}/previews/a.jpg.png     a small copy of it, decoded once by another process: what the page shows and checks
{folder}/previews/a.jpg.json    its facts (see ``Preview``)
{folder}/masks/a.jpg.png        its mask, if it has one, of ``mask_size``

A draft is not a run: ``copy_photos`` copies its photos to where runs read them.
"""

import contextlib
import functools
import json
import math
import shutil
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from hra_diffusion import records
from hra_diffusion.files import make_folder, move, remove, temporary_folder, write_text
from hra_diffusion.generation.png import read_image, save_png
from hra_diffusion.names import is_reserved, unused_name
from training.config import with_current_names
from training.data.buckets import Size
from training.data.caption_files import CAPTION_SUFFIXES
from training.data.checks import check_photo, check_together
from training.data.cropping import CropMode, checked_box, crop_window, image_size, resize
from training.data.decode_process import DECODER, Facts
from training.data.masks import cropped_mask, grabcut, is_found, require_mask_size
from training.data.photo import MIN_SIDE, Box, Photo, PhotoError, PhotoWarning, Upright
from training.data.photo_files import MASK_SUFFIX, MAX_PHOTOS, SUFFIXES, is_mask, mask_path

CAPTION_LENGTH = 300
MAX_MEGABYTES = 100
"""Largest file of a photo: 150 megapixels as JPEG or HEIC."""


MAX_MEGAPIXELS = 2000
"""Most megapixels of a draft's photos together: 50 photos of 40 megapixels."""

MASK_SIDE = 640
"""Long side, in pixels, of a mask."""
_lock = threading.RLock()
"""Held while the list of a draft is read or changed, never while a photo is decoded."""


@dataclass(frozen=True)
class Preview:
    """The facts of a photo's small copy. ``stamp``: size in bytes and time (ns) of the photo that it was made from."""

    facts: Facts
    stamp: tuple[int, int]


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
        with _lock:
            files = sorted(path.name for path in self.folder.glob("photos/*"))
            found = records.read(self.folder / "draft.json", Contents, Contents(tuple(map(DraftPhoto, files)), {}))
        photos = tuple(photo for photo in found.photos if photo.file in files)
        return Contents(photos, with_current_names(found.values))

    def add(self, files: Sequence[Path], replace_all: bool = False) -> list[str]:
        """Copy photos, and captions and masks of the same names, into the draft. Return a message per unusable file.

        ``replace_all`` removes the present photos first.
        """
        masks = {path.name[: -len(MASK_SUFFIX)]: path for path in files if is_mask(path)}
        photos_given = [path for path in files if path.suffix.lower() not in CAPTION_SUFFIXES and not is_mask(path)]
        given = {path.stem for path in photos_given}
        captions: dict[str, Path] = {}
        placed: dict[str, str] = {}
        refused: list[str] = []
        for path in (path for suffix in CAPTION_SUFFIXES for path in files if path.suffix.lower() == suffix):
            if (used := captions.setdefault(path.stem, path)) != path:
                refused.append(f"{path.name}: {used.name} is the caption of this photo, so this file is ignored")
        with temporary_folder(self.folder / "incoming") as folder:
            staged = self._stage(photos_given, folder, () if replace_all else self.read().photos, refused)
            with _lock:
                before = self.read()
                photos = [] if replace_all else list(before.photos)
                # captions are found by stem, and file systems of Windows and macOS ignore case
                taken = {Path(photo.file).stem.casefold() for photo in before.photos}
                for path, decoded in staged[: MAX_PHOTOS - len(photos)]:
                    caption = _caption(captions[path.stem]) if path.stem in captions else ""
                    placed[path.stem] = self._place(path, decoded, taken)
                    photos.append(DraftPhoto(placed[path.stem], caption=caption))
                for path in (path for stem, path in captions.items() if stem not in given):  # of photos added before
                    stem = next(_stems(path, 0))
                    at = next((i for i, photo in enumerate(photos) if Path(photo.file).stem == stem), None)
                    if at is None:
                        refused.append(f"{path.name}: no photo has this name")
                    else:
                        photos[at] = replace(photos[at], caption=_caption(path))
                self._write(replace(before, photos=tuple(photos)))
        earlier = {Path(photo.file).stem: photo.file for photo in self.read().photos}
        for stem, path in masks.items():
            try:
                self._add_mask(placed.get(stem) or earlier.get(next(_stems(Path(stem), 0)), ""), path)
            except PhotoError as error:
                refused.append(str(error).replace(str(path), path.name))
        return refused

    def _add_mask(self, file: str, path: Path) -> None:
        """Copy a mask file to a photo. Raises PhotoError."""
        if not file:
            raise PhotoError(f"{path.name}: no photo has this name")
        with temporary_folder(self.folder / "incoming") as folder:
            facts = DECODER.decode(path, folder / "mask.png")
            require_mask_size(path, facts.size, self.upright(file).size)
            with Image.open(folder / "mask.png") as mask:
                self.set_mask(file, mask.convert("L"))

    def mask(self, file: str) -> Image.Image | None:
        """Return the mask of a photo, or None."""
        mask = read_image(self.folder / "masks" / f"{file}.png")
        return mask and mask.convert("L")

    def set_mask(self, file: str, mask: Image.Image | None) -> None:
        """Store the mask of a photo; None or an all black one removes it. Raises PhotoError if the photo is removed."""
        path, size = self.folder / "masks" / f"{file}.png", mask_size(self.upright(file).size)
        with _lock:
            self.get(file)
            if mask is None or not mask.getbbox():
                remove(path)
            else:
                save_png(mask.resize(size), path)

    def find_mask(self, file: str) -> bool:
        """Store the mask that GrabCut finds in the photo's crop box. Return whether it found a subject.

        Raises PhotoError if OpenCV is missing.
        """
        mask = grabcut(self.upright(file), self.get(file).box)
        if found := is_found(mask):
            self.set_mask(file, mask)
        return found

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
        """Return the small copies and masks as their photos are cropped for training, with warnings.

        Damaged photos give only a warning.
        """
        while True:
            with contextlib.suppress(_RemovedError):  # since the list was read
                return self._load(self.read().photos, resolution, crop)

    def _load(
        self, listed: Sequence[DraftPhoto], resolution: int, crop: CropMode
    ) -> tuple[list[Photo], list[PhotoWarning]]:
        photos: list[Photo] = []
        warnings: list[PhotoWarning] = []
        for photo in listed:
            path = self.folder / "photos" / photo.file
            try:
                loaded, own = _cropped(path, _stamp(path), resolution, crop, photo.box)
            except _RemovedError:
                raise
            except PhotoError as error:
                warnings.append(PhotoWarning("ignored", path, str(error).replace(str(path), path.name)))
            else:
                photos.append(self._masked(loaded, crop))
                warnings += own
        return photos, [*warnings, *check_together(photos)]

    def photo(self, file: str, resolution: int, crop: CropMode = "smart") -> Photo:
        """Return one photo, as ``photos`` does. Raises PhotoError if it has been removed."""
        path = self.folder / "photos" / file
        return self._masked(_cropped(path, _stamp(path), resolution, crop, self.get(file).box)[0], crop)

    def _masked(self, photo: Photo, crop: CropMode) -> Photo:
        if (mask := self.mask(photo.path.name)) is None:
            return photo
        return replace(photo, mask=cropped_mask(mask, photo.size, photo.crop, photo.image.size, crop))

    def upright(self, file: str) -> Upright:
        """Return the small copy of a whole photo. Raises PhotoError if it has been removed."""
        path = self.folder / "photos" / self.get(file).file
        return _preview(path, _stamp(path))[0]

    def copy_photos(self, folder: Path) -> dict[Path, Box]:
        """Copy the photos, masks and captions to a new folder for a run. Return the crop boxes by path of the copies.

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
            if mask := self.mask(photo.file):
                save_png(mask.resize(self.upright(photo.file).size), mask_path(copy))
            if photo.box:
                boxes[copy] = photo.box
        return boxes

    def _stage(
        self, files: Sequence[Path], folder: Path, others: Sequence[DraftPhoto], refused: list[str]
    ) -> list[tuple[Path, Path]]:
        """Decode the photos among files, and copy each with its preview into a folder of its own in ``folder``.

        Returns the files and these folders, and adds a message per unusable file to ``refused``.
        """
        staged: list[tuple[Path, Path]] = []
        notes = (records.read(_preview_paths(self.folder / "photos" / o.file)[1], Preview, None) for o in others)
        pixels = sum(math.prod(note.facts.size) for note in notes if note)
        for path in files:
            try:
                if len(others) + len(staged) == MAX_PHOTOS:
                    raise PhotoError(f"{path.name}: the limit is {MAX_PHOTOS} photos; this one was not added")
                if pixels > MAX_MEGAPIXELS * 10**6:
                    raise PhotoError(
                        f"{path.name}: the photos have more than {MAX_MEGAPIXELS} megapixels together; this one was "
                        "not added. Save smaller copies."
                    )
                decoded = make_folder(folder / str(len(staged)))
                pixels += math.prod(_decode_copy(path, decoded).size)
                staged.append((path, decoded))
            except PhotoError as error:
                refused.append(str(error).replace(str(path), path.name))
        return staged

    def _place(self, path: Path, decoded: Path, taken: set[str]) -> str:
        """Move a decoded photo into the draft under a stem that is not ``taken``, and return its file name."""
        stem = next(stem for stem in _stems(path, len(taken)) if stem.casefold() not in taken)
        taken.add(stem.casefold())
        # load_dataset finds photos by suffix, but detects the format from the content
        file = f"{stem}{suffix if (suffix := path.suffix.lower()) in SUFFIXES else '.jpg'}"
        photo = make_folder(self.folder / "photos") / file
        make_folder(self.folder / "previews")
        for source, target in zip(("photo.png", "photo.json", "photo"), (*_preview_paths(photo), photo), strict=True):
            move(decoded / source, target)
        return file

    def _write(self, contents: Contents) -> None:
        """Write draft.json, then delete the photos that it does not list: a crash in between loses nothing listed."""
        make_folder(self.folder)
        write_text(self.folder / "draft.json", json.dumps(asdict(contents), ensure_ascii=False))
        photos = [self.folder / "photos" / photo.file for photo in contents.photos]
        kept = {*photos, *(path for photo in photos for path in _preview_paths(photo))}
        kept |= {self.folder / "masks" / f"{photo.file}.png" for photo in contents.photos}
        for path in [path for name in ("photos", "previews", "masks") for path in self.folder.glob(f"{name}/*")]:
            if path not in kept:
                with contextlib.suppress(OSError):  # Windows: it is being shown; the next change deletes it
                    remove(path)


def mask_size(photo: Size) -> Size:
    """Return the size at which the mask of a photo of this size is painted and stored."""
    scale = min(1.0, MASK_SIDE / max(photo))
    return max(1, round(photo[0] * scale)), max(1, round(photo[1] * scale))


def free_photo_folder(output: Path, name: str) -> Path:
    """Return the path of a new folder for photos: ``{output}/photos/{name}``, numbered if that exists."""
    root = output / "photos"
    return root / unused_name(name, root)


def box_from_zoom(size: tuple[int, int], zoom: float, across: float, down: float, square: bool = True) -> Box:
    """Return a crop box in a photo of this size: a square, or of the photo's aspect ratio.

    ``zoom`` is the ratio of the short sides of photo and box. ``across`` and ``down`` give its position, 0 to 1.
    """
    short = max(MIN_SIDE, round(min(size) / zoom))
    width, height = (short if square else round(side * short / min(size)) for side in size)
    left, top = round((size[0] - width) * across), round((size[1] - height) * down)
    return left, top, left + width, top + height


def zoom_from_box(size: tuple[int, int], box: Box) -> tuple[float, float, float]:
    """Return the zoom, across and down for which ``box_from_zoom`` returns this box."""
    sides = box[2] - box[0], box[3] - box[1]
    across, down = (
        (start / room if (room := whole - side) else 0.5) for start, whole, side in zip(box, size, sides, strict=False)
    )
    return min(size) / min(sides), across, down


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


class _RemovedError(PhotoError):
    pass


def _stamp(photo: Path) -> tuple[int, int]:
    try:
        status = photo.stat()
    except OSError:
        raise _RemovedError("this photo has been removed; choose another") from None
    return status.st_size, status.st_mtime_ns


def _preview_paths(photo: Path) -> tuple[Path, Path]:
    folder = photo.parent.parent / "previews"
    return folder / f"{photo.name}.png", folder / f"{photo.name}.json"


def _decode_copy(path: Path, folder: Path) -> Facts:
    """Copy a photo to ``folder`` as "photo", with its preview "photo.png" and the preview's facts "photo.json"."""
    if (size := path.stat().st_size / 1e6) > MAX_MEGABYTES:
        raise PhotoError(
            f"{path.name}: {size:.0f} MB; a photo may have {MAX_MEGABYTES} MB at most. Save a smaller copy."
        )
    facts = DECODER.decode(path, folder / "photo.png")
    shutil.copyfile(path, folder / "photo")
    preview = Preview(facts, _stamp(folder / "photo"))
    write_text(folder / "photo.json", json.dumps(asdict(preview)))
    return facts


@functools.lru_cache(maxsize=64)
def _cropped(
    photo: Path, stamp: tuple[int, int], resolution: int, crop: CropMode, box: Box | None
) -> tuple[Photo, Sequence[PhotoWarning]]:
    upright, window = _preview(photo, stamp)
    frame: Box = checked_box(photo, box, upright.size) if box else (0, 0, *upright.size)
    if box or crop != "smart":
        window = crop_window(upright, frame, crop, resolution)
    image = resize(upright, window, image_size(window, crop, resolution), crop)
    cropped = Photo(photo, image, None, window, frame, upright.size, upright.sha256)
    return cropped, check_photo(cropped, upright)


def _preview(photo: Path, stamp: tuple[int, int]) -> tuple[Upright, Box]:
    """Return the small copy of a photo and its smart crop. Raises PhotoError.

    The copy is made again if it is missing, damaged or of another photo.
    """
    image_path, facts_path = _preview_paths(photo)
    stored = records.read(facts_path, Preview, None)
    image = read_image(image_path) if stored and stored.stamp == stamp else None
    if stored is None or image is None:
        with temporary_folder(photo.parent.parent / "incoming") as folder:
            facts = DECODER.decode(photo, folder / "photo.png")
            make_folder(image_path.parent)
            move(folder / "photo.png", image_path)
        stored = Preview(facts, stamp)
        write_text(facts_path, json.dumps(asdict(stored)))
        image = Image.open(image_path).convert("RGB")
    (width, height), facts = image.size, stored.facts
    scale = width / facts.size[0], height / facts.size[1]
    return Upright(image, scale, facts.size, facts.sha256), facts.window
