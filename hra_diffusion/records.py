"""Read the small files that this program keeps for itself, such as ``draft.json``.

A damaged file never stops the program: it is set aside under another name, for a person to look at, with one warning
(``Note``), and the caller goes on with its default. A file that is only missing gives the default without a warning.
"""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from hra_diffusion.errors import Note, first_line
from hra_diffusion.files import FileError, move, read_bytes

Kind = TypeVar("Kind")
Default = TypeVar("Default")
DAMAGED = ".damaged-"
"""Between the name of a file that was set aside and its number: "state.json.damaged-1"."""

_reported: set[Path] = set()
"""Damaged files that could not be set aside, as in a read-only folder. Each is reported once."""


def read(path: Path, kind: type[Kind], default: Default) -> Kind | Default:
    """Return the content of a JSON file as ``kind``: a pydantic model, a dataclass or a type such as ``list[str]``.

    Returns ``default`` if the file is missing, or damaged: not UTF-8, not JSON, nested too deeply, of other types or
    without required fields, or a folder. A damaged file is set aside with a warning.
    """
    return read_with(path, _adapter(kind).validate_json, default)


def read_with(path: Path, parse: Callable[[bytes], Kind], default: Default) -> Kind | Default:
    """Return ``parse(content)`` of a file, or ``default`` if it is missing, or damaged: ``parse`` raises ValueError.

    A damaged file is set aside with a warning. One that can't be read for lack of permission stays where it is.
    """
    try:
        return parse(read_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        if path.is_dir():
            set_aside(path, "a folder is in its place")
        else:
            warn_once(path, f"{path} can't be read ({error.strerror}); the program continues without it")
    except ValueError as error:
        set_aside(path, _reason(error))
    return default


def read_lines(path: Path, kind: type[Kind]) -> list[Kind]:
    """Return the lines of a JSON Lines file as ``kind``. Other lines, such as torn ones, are skipped with a warning."""
    return list(parse_lines(path, read_with(path, bytes.splitlines, []), kind))


def parse_lines(path: Path, lines: Iterable[bytes], kind: Any) -> Iterator[Any]:
    """Yield JSON lines of the file at ``path`` as ``kind``. Other lines are skipped, with one warning per file."""
    for line in lines:
        try:
            yield _adapter(kind).validate_json(line)
        except ValidationError as error:
            warn_once(path, f"{path} has a damaged line ({_reason(error)}); such lines are ignored")


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def set_aside(path: Path, reason: str) -> None:
    """Move a damaged file, or a folder in its place, aside, with a warning."""
    aside = path_aside(path)
    try:
        move(path, aside)
    except FileError:
        if path.exists():  # else another process was faster
            warn_once(path, f"{path} is damaged ({reason}) and can't be moved; the program continues without it")
        return
    warnings.warn(
        f"{path} is damaged ({reason}); it was set aside as {aside.name}, and the program continues without it",
        Note,
        stacklevel=4,
    )


def path_aside(path: Path) -> Path:
    """Return the path to which a damaged file is moved: its own with the first free number."""
    names = (path.with_name(f"{path.name}{DAMAGED}{number}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def warn_once(path: Path, message: str) -> None:
    """Warn (``Note``) about a file, once per process."""
    if path not in _reported:
        _reported.add(path)
        warnings.warn(message, Note, stacklevel=4)


def _reason(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return first_line(error)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return ": ".join([*(str(part)[:40] for part in first["loc"][:3]), first["msg"][:200]])
