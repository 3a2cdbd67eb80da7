"""Trash of an output folder (on the page: the bin): deleted adapters and runs, which can be restored for 30 days."""

from __future__ import annotations

import time
from pathlib import Path

from hra_diffusion import records
from hra_diffusion.errors import UserError
from hra_diffusion.files import make_folder, move, remove, write_text

FOLDER = ".bin"
RETENTION_DAYS = 30
"""Days until an item in the trash is deleted for good."""
MAX_NAME_BYTES = 255
"""Longest file name that file systems accept."""


def move_to_trash(path: Path, root: Path) -> str:
    """Move an adapter file or a run folder to the trash of ``root``; an adapter's own folder moves with it.

    Returns the key that ``restore`` takes.
    """
    path, root = path.resolve(), root.resolve()
    item = path.parent if path.parent.name == path.stem and path.parent != root else path
    key = f"{int(time.time())}-{item.name}"
    trashed = make_folder(root / FOLDER) / key
    write_text(_origin_note(trashed), item.relative_to(root).as_posix())
    move(item, trashed)
    return key


def restore(key: str, root: Path) -> Path:
    """Move an item back to where it was. Raises UserError if it is gone from the trash or its old path is in use."""
    trashed = root / FOLDER / Path(key).name
    if not trashed.exists():
        raise UserError("it is not in the bin any more")
    target = _origin(trashed, root)
    if target.exists():
        raise UserError(f"the name {target.name!r} is in use again; rename that adapter or run first")
    move(trashed, target)
    remove(_origin_note(trashed))
    return target


def _origin(trashed: Path, root: Path) -> Path:
    """Return the original path of an item; without a valid note beside it, its own name in ``root``."""
    origin = root / records.read_with(_origin_note(trashed), _parse_origin, "")
    inside = origin != root and origin.resolve().is_relative_to(root.resolve())
    return origin if inside else root / trashed.name.partition("-")[2]


def _parse_origin(content: bytes) -> str:
    origin = content.decode()
    if not origin.isprintable() or any(len(part) > MAX_NAME_BYTES for part in content.split(b"/")):
        raise ValueError("it does not hold a path")
    return origin


def _origin_note(trashed: Path) -> Path:
    """Return the file beside an item that holds its original path, relative to the output folder."""
    return trashed.with_name(f"{trashed.name}.from")


def _is_note(name: str) -> bool:
    return name.partition(records.DAMAGED)[0].endswith(".from")


def keys(root: Path) -> list[str]:
    """Return the keys of the items in the trash, newest first."""
    names = [path.name for path in (root / FOLDER).glob("[0-9]*-*") if not _is_note(path.name)]
    return sorted((name for name in names if name.partition("-")[0].isdecimal()), reverse=True)


def expired(root: Path, days: float = RETENTION_DAYS) -> list[str]:
    """Return the keys of the items that have been in the trash for more than ``days``."""
    return [key for key in keys(root) if time.time() - int(key.split("-")[0]) > days * 86400]


def delete(key: str, root: Path) -> None:
    """Delete an item for good."""
    remove(root / FOLDER / Path(key).name)
    remove(_origin_note(root / FOLDER / Path(key).name))
