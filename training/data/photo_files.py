"""Find photos, and their caption files, in files and folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from training.data.caption_files import CAPTION_SUFFIXES, caption_paths, existing_captions, read_caption
from training.data.photo import PhotoError, PhotoWarning, unreadable

MAX_PHOTOS = 50
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".heic", ".heif", ".gif"})
"""Files of a folder that count as photos. A file given by its path may have any suffix."""
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "notice", "license")
MASK_SUFFIX = ".mask.png"
"""The mask of dog.jpg is dog.mask.png beside it."""


def mask_path(photo: Path) -> Path:
    """Return the path at which the mask of a photo may lie."""
    return photo.with_name(photo.stem + MASK_SUFFIX)


def is_mask(path: Path) -> bool:
    """Return whether a file is a mask by its name."""
    return path.name.lower().endswith(MASK_SUFFIX)


class FoundPhotos(NamedTuple):
    """``photos`` maps each resolved path to the path as given, beside which the caption lies. ``ignored`` are the
    remaining files of the folders, sorted."""

    photos: dict[Path, Path]
    ignored: list[Path]


def search(paths: Sequence[Path]) -> FoundPhotos:
    """Find the photos among files and folders, each photo once. Subfolders are not searched.

    Raises PhotoError if a path is missing or unreadable, a folder contains no photos, or there are none or more than
    ``MAX_PHOTOS``.
    """
    given: list[Path] = []
    ignored: set[Path] = set()
    for path in map(Path, paths):
        photos, others = _list_folder(path) if resolve(path).is_dir() else ([path], [])
        given += photos
        ignored.update(others)
    # a shell expands `photos/*` to the caption files and masks too
    captions = {path for photo in given if photo.suffix not in CAPTION_SUFFIXES for path in caption_paths(photo)}
    masks = {mask_path(photo) for photo in given}
    found: dict[Path, Path] = {}
    for photo in given:
        if photo not in captions and photo not in masks:
            found.setdefault(resolve(photo), photo)
    _check_count(len(found))
    ignored.update(path for photo in found.values() for path in existing_captions(photo)[1:])
    return FoundPhotos(found, sorted(ignored))


def find_photos(paths: Sequence[Path]) -> list[Path]:
    """Return the resolved paths of the photos among files and folders, sorted. Raises PhotoError as ``search`` does."""
    return sorted(search(paths).photos)


def read_captions(paths: Sequence[Path]) -> dict[Path, str | None]:
    """Return the caption of each photo among files and folders by resolved path, None for photos without a caption.

    Raises PhotoError as ``search`` and ``read_caption`` do.
    """
    photos = search(paths).photos
    return {path: read_caption(photos[path]) for path in sorted(photos)}


def resolve(path: Path) -> Path:
    """Return the resolved path of a file or folder. Raises PhotoError if it does not exist or is neither."""
    try:
        resolved = path.resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PhotoError(f"{path}: does not exist. Check the spelling.") from error
    except (OSError, RuntimeError) as error:  # Python before 3.13 raises RuntimeError for circular links
        raise unreadable(path, error) from error
    if not (resolved.is_file() or resolved.is_dir()):  # reading a pipe would block forever
        raise PhotoError(f"{path}: is neither a file nor a folder. Give a photo or a folder of photos.")
    return resolved


def ignored_warning(path: Path) -> PhotoWarning:
    """Return a warning that says why a file of a folder was ignored."""
    if is_mask(path):
        reason = "no photo in the folder has this name. The mask of dog.jpg is dog.mask.png."
    elif path.suffix == ".caption" and (used := path.with_suffix(".txt")).is_file():
        reason = f"{used.name} is the caption of this photo, so this file is ignored. Keep one of them."
    elif path.suffix.lower() in CAPTION_SUFFIXES:
        reason = f"no photo in the folder has this name. The caption of dog.jpg is dog{path.suffix.lower()}."
    elif path.is_dir():
        reason = "subfolders are not searched. Add it as well if it contains photos of the subject."
    else:
        reason = "not a photo; ignored."
    return PhotoWarning("ignored", path, f"{path.name}: {reason}")


def _list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the photos of a folder, and everything else in it that is not their caption."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not _is_hidden(entry))
        photos = [entry for entry in entries if entry.suffix.lower() in SUFFIXES and not is_mask(entry)]
        photos = [photo for photo in photos if photo.is_file()]
    except OSError as error:
        raise unreadable(folder, error) from error
    if not photos:
        raise PhotoError(f"{folder}: no photos in this folder. Put JPEG, PNG, WebP or HEIC files directly into it.")
    known = {*photos, *(path for photo in photos for path in (*caption_paths(photo), mask_path(photo)))}
    return photos, [entry for entry in entries if entry not in known]


def _is_hidden(entry: Path) -> bool:
    return entry.name.startswith(".") or entry.name.lower() in SYSTEM_FILES


def _check_count(count: int) -> None:
    if count == 0:
        raise PhotoError(f"No photos were given. Give a folder, or 1 to {MAX_PHOTOS} photos.")
    if count > MAX_PHOTOS:
        raise PhotoError(f"{count} photos were given; the limit is {MAX_PHOTOS}. Keep the best: 3 to 10 are enough.")
