"""Damage a file in the ways that a full disk, a crash or a person does."""

import shutil
from pathlib import Path
from typing import Literal

Content = bytes | None | Literal["folder"]
"""Content of a damaged file. None for a missing one, "folder" for a folder in its place."""

DAMAGED: dict[str, Content] = {"empty": b"", "truncated": b'{"status": "stop', "zeros": b"\0" * 40, "missing": None}
GARBAGE: dict[str, Content] = {
    "empty": b"",
    "truncated": b'{"status": "stop',
    "zeros": b"\0" * 40,
    "folder": "folder",
    "null": b"null",
    "number": b"3",
    "text": b'"abc"',
    "list of numbers": b"[1, 2]",
    "list of lists": b"[[]]",
    "other keys": b'{"a": [1]}',
    "other types": b'{"status": [], "step": {}, "winner": 3, "photos": 1, "values": []}',
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "latin-1": b'{"status": "\xe9"}',
    "lone surrogate": b'{"status": "\\ud800"}',
    "5,000 digits": b'{"status": "a", "step": ' + b"9" * 5000 + b"}",
    "not a number": b'{"status": "a", "step": NaN}',
}
"""Contents that are no sound file of any kind."""


def damage(file: Path, content: Content) -> None:
    """Replace the content of a file, or delete the file."""
    if file.is_dir():
        shutil.rmtree(file)
    file.unlink(missing_ok=True)
    if content == "folder":
        (file / "inside").mkdir(parents=True)
    elif content is not None:
        file.write_bytes(content)
