"""Names that are safe as file and folder names on every system."""

import itertools
import unicodedata
from collections.abc import Callable
from pathlib import Path

from hra_diffusion.errors import UserError

MAX_NAME, MAX_BYTES = 64, 192
"""Largest number of characters of a name, and of bytes: with suffixes its files stay below the 255 of file systems."""
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in "123456789¹²³")}
"""Device names on Windows, with or without a suffix (Microsoft, Naming Files, Paths, and Namespaces)."""


def validated_name(name: str) -> str:
    """Return ``name`` in Unicode's composed form (NFC). Raises UserError unless it is safe as a folder's name.

    A safe name has 1 to 64 letters and digits of any language, spaces, ``-`` and ``_``, and starts with a letter or
    digit.
    """
    name = unicodedata.normalize("NFC", name)
    shown = repr(name if len(name) <= MAX_NAME else name[:20] + "…")
    if not name or len(name) > MAX_NAME:
        raise UserError(f"the name {shown} has {len(name)} characters; use 1 to {MAX_NAME}")
    if len(name.encode(errors="replace")) > MAX_BYTES:
        raise UserError(f"the name {shown} is too long for the names of files; use at most {MAX_BYTES} bytes in UTF-8")
    if invalid := [c for c in name if not (c.isalnum() or unicodedata.category(c) in ("Mn", "Mc") or c in " -_")]:
        raise UserError(f"the name {shown} contains {invalid[0]!r}; use letters, digits, spaces, - and _")
    if not name[0].isalnum() or name[-1] == " " or is_reserved(name):
        raise UserError(
            f"the name {shown} can't be used for a folder; start with a letter or digit, and don't end with a space"
        )
    return name


def is_text(text: str) -> bool:
    """Whether a text can be part of a path or a file: without NUL, and without surrogates, as of undecodable bytes."""
    return "\0" not in text and text.encode(errors="ignore").decode() == text


def is_reserved(stem: str) -> bool:
    """Whether a file name without its suffix is a device name on Windows."""
    return stem.casefold() in _RESERVED


def cut(name: str, room: int = 0) -> str:
    """Return the start of a name that leaves room for so many more ASCII characters."""
    return name[: MAX_NAME - room].encode()[: MAX_BYTES - room].decode(errors="ignore")


def first_free(name: str, is_taken: Callable[[str], bool]) -> str:
    """Return the first of "name", "name 2", "name 3", … that is not taken; a long name is cut for its number."""
    ends = (f" {number}" for number in itertools.count(2))
    names = itertools.chain([name], (cut(name, len(end)) + end for end in ends))
    return next(free for free in names if not is_taken(free))


def unused_name(name: str, folder: Path) -> str:
    """Return ``name``, numbered if ``folder`` has an entry of that name. Raises UserError for an invalid name."""
    return first_free(validated_name(name), lambda free: (folder / free).exists())
