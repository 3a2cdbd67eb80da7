"""Caption files: the caption of dog.jpg is dog.txt beside it, or else dog.caption."""

from pathlib import Path

from training.data.photo import PhotoError, unreadable

CAPTION_SUFFIXES = (".txt", ".caption")
"""In order of precedence."""


def caption_paths(photo: Path) -> list[Path]:
    """Return the paths at which the caption of a photo may lie, in order of precedence."""
    return [photo.with_suffix(suffix) for suffix in CAPTION_SUFFIXES]


def existing_captions(photo: Path) -> list[Path]:
    """Return the caption files of a photo that exist. The first one is used."""
    return [path for path in caption_paths(photo) if path.is_file()]


def read_caption(photo: Path) -> str | None:
    """Return the caption of a photo with its lines joined, or None if there is no caption file.

    Raises PhotoError if the file is unreadable, empty or not UTF-8.
    """
    if not (files := existing_captions(photo)):
        return None
    path = files[0]
    try:
        caption = " ".join(path.read_text("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise PhotoError(f"{path}: the caption is not UTF-8 text. Save it again as UTF-8.") from error
    except OSError as error:
        raise unreadable(path, error) from error
    if not caption:
        raise PhotoError(f"{path}: the caption is empty. Write one, or delete the file.")
    return caption
