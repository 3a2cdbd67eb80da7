"""The bin of an output folder: deleted adapters and runs, which can be restored for 30 days."""

from __future__ import annotations

import time
from pathlib import Path

from hra_diffusion.errors import UserError
from hra_diffusion.files import make_folder, move, remove, write_text

FOLDER = ".bin"
RETENTION_DAYS = 30
"""Days until something in the bin is deleted for good."""


def move_to_trash(path: Path, root: Path) -> str:
    """Put an adapter with the folder of its run, or the folder of a run that came to none, into ``root``'s bin.

    Returns the key that ``restore`` takes.
    """
    path, root = path.resolve(), root.resolve()
    thing = path.parent if path.parent.name == path.stem and path.parent != root else path
    key = f"{int(time.time())}-{thing.name}"
    place = make_folder(root / FOLDER) / key
    write_text(root / FOLDER / f"{key}.from", thing.relative_to(root).as_posix())
    move(thing, place)
    return key


def restore(key: str, root: Path) -> Path:
    """Bring back what ``move_to_trash`` put away. Raises UserError if it is gone, or its place is taken."""
    place = root / FOLDER / Path(key).name
    if not place.exists():
        raise UserError("it is not in the bin any more")
    target = _origin(place, root)
    if target.exists():
        raise UserError(f"there is something called {target.name!r} again; rename that first")
    move(place, target)
    remove(root / FOLDER / f"{place.name}.from")
    return target


def _origin(place: Path, root: Path) -> Path:
    """Where a thing in the bin came from; if the note beside it is damaged, the outputs folder under its own name."""
    kept = place.with_name(f"{place.name}.from")
    origin = root / (kept.read_text(encoding="utf-8", errors="replace") if kept.is_file() else "")
    inside = origin != root and origin.resolve().is_relative_to(root.resolve())
    return origin if inside else root / place.name.partition("-")[2]


def keys(root: Path) -> list[str]:
    """Keys of what lies in the bin, newest first."""
    names = [path.name for path in (root / FOLDER).glob("[0-9]*-*") if path.suffix != ".from"]
    return sorted((name for name in names if name.partition("-")[0].isdecimal()), reverse=True)


def empty(root: Path, days: float = RETENTION_DAYS) -> None:
    """Delete for good what has lain in the bin for so many days."""
    for key in keys(root):
        if time.time() - int(key.split("-")[0]) > days * 86400:
            remove(root / FOLDER / key)
            remove(root / FOLDER / f"{key}.from")
