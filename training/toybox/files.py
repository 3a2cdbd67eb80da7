"""Whole files or none: everything the toybox writes appears under its name only when it is complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends well.

    The block may make a file there or a folder; a folder that stands at `path` is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    if unfinished.is_dir():
        rmtree(unfinished)
    yield unfinished
    if path.is_dir():
        outdated = path.with_name(f".{path.name}.old")
        path.rename(outdated)
        unfinished.rename(path)
        rmtree(outdated)
    else:
        unfinished.replace(path)
