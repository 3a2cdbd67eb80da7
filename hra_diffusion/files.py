"""Names and files from outside, checked; and files written whole or not at all."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hra_diffusion.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
WINDOWS = os.name == "nt"
BUSY_SECONDS = 1.0
"""How long a file that another process has open on Windows is tried again."""
MAX_NAME = 64
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in "123456789¹²³")}
"""Names of devices on Windows, with or without a suffix (Microsoft, Naming Files, Paths, and Namespaces)."""


class FileError(UserError, OSError):
    """A file or folder can't be used: what, where and what to do."""


def validated_name(name: str) -> str:
    """``name`` in Unicode's composed form (NFC), if it is safe as an adapter's and a folder's name.

    Letters and digits of any language, spaces, ``-`` and ``_``; starts with a letter or digit; at most 64 characters.
    Raises ValueError saying what is wrong.
    """
    name = unicodedata.normalize("NFC", name)
    shown = repr(name if len(name) <= MAX_NAME else name[:20] + "…")
    if not name or len(name) > MAX_NAME:
        raise UserError(f"the name {shown} has {len(name)} characters; use 1 to {MAX_NAME}")
    wrong = next((c for c in name if not (c.isalnum() or unicodedata.category(c) in ("Mn", "Mc") or c in " -_")), None)
    if wrong is not None:
        raise UserError(f"the name {shown} has {wrong!r} in it; use letters, digits, spaces, - and _")
    if not name[0].isalnum() or name[-1] == " " or is_reserved(name):
        raise UserError(f"the name {shown} can't be used for a folder; start with a letter or digit, end without space")
    return name


def is_reserved(stem: str) -> bool:
    """Whether Windows takes a file of this name, without its suffix, for a device."""
    return stem.casefold() in _RESERVED


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` for a file or a folder; on success it takes the place of ``path``.

    On failure nothing is left behind. Makes parent folders. Raises FileError for a full disk, a read-only folder, a
    file where a folder must be.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp{path.suffix}")
    try:
        make_folder(path.parent)
        remove(temporary)
        yield temporary
        _readable(temporary)
        flush(temporary)
        replace(temporary, path)
    except OSError as error:
        raise to_file_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            remove(temporary)


def _readable(path: Path) -> None:
    """Give files that their writer keeps for their owner alone, as safetensors does, the mode of any new file here."""
    private = [file for file in _files(path) if not file.stat().st_mode & 0o077]
    if private:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mode.") as folder:
            plain = Path(folder) / "plain"
            plain.touch()
            for file in private:
                file.chmod(plain.stat().st_mode)


def flush(path: Path) -> None:
    """Have the system put a file, or all of a folder, on the disk now: a power cut must not leave a renamed blank."""
    for file in _files(path):
        with file.open("r+b") as stream:  # Windows flushes only what is open for writing
            os.fsync(stream.fileno())


def _files(path: Path) -> list[Path]:
    return [file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]


def replace(temporary: Path, path: Path) -> None:
    """Rename ``temporary`` to ``path``; a folder that stands there steps aside first and is then deleted."""
    if not path.is_dir():
        move(temporary, path)
        return
    outdated = temporary.with_suffix(".old")
    move(path, outdated)
    try:
        move(temporary, path)
    except OSError:
        move(outdated, path)
        raise
    remove(outdated)


def move(source: Path, target: Path) -> None:
    """Rename a file, in place of one that is there, or a folder. Raises FileError."""
    try:
        _retry_while_busy(lambda: source.replace(target))
    except OSError as error:
        raise to_file_error(error, target) from error


def _retry_while_busy(action: Callable[[], T]) -> T:
    """The result of ``action``. On Windows it is tried for a second while another process has the file open.

    pip does the same (pip/_internal/utils/filesystem.py): virus scanners and readers hold files for an instant.
    """
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return action()
        except PermissionError:
            if not WINDOWS or time.monotonic() > end:
                raise
            time.sleep(0.02)


def remove(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir():
        _retry_while_busy(lambda: shutil.rmtree(path))
    else:
        _retry_while_busy(lambda: path.unlink(missing_ok=True))


def next_numbered_folder(parent: Path) -> Path:
    """The first of parent/0001, parent/0002, … that is not there."""
    return next(folder for number in itertools.count(1) if not (folder := parent / f"{number:04d}").exists())


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file of ours; None if it is missing, empty or damaged, as a power cut can leave it."""
    try:
        return json.loads(_retry_while_busy(lambda: path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file. A line that a power cut tore is ended first. Raises FileError."""
    try:
        with _retry_while_busy(lambda: path.open("ab+")) as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
            torn = file.read(1) not in (b"", b"\n")
            file.write(("\n" * torn + line + "\n").encode())
    except OSError as error:
        raise to_file_error(error, path) from error


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of one JSON object a line; lines that are none (torn by a power cut) are passed over."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    yield from json_objects(lines)


def json_objects(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects among lines; others (torn by a power cut) are passed over."""
    for line in lines:
        with contextlib.suppress(ValueError):
            if isinstance(found := json.loads(line), dict):
                yield found


def save_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, as float32 where they are floating point, to a safetensors file whole or not at all."""
    data = _serialised(tensors, metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def tensors_hash(tensors: "Mapping[str, Tensor]") -> str:
    """SHA-256 of what ``save_tensors`` writes after the file's header, in hexadecimal."""
    data = memoryview(_serialised(tensors))
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def _serialised(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> bytes:
    from safetensors.torch import save

    return save({key: _storable(tensor) for key, tensor in tensors.items()}, dict(metadata or {}))


def _storable(tensor: "Tensor") -> "Tensor":
    tensor = tensor.detach().cpu().contiguous()
    return tensor.float() if tensor.is_floating_point() else tensor


def make_folder(folder: Path) -> Path:
    """Make a folder with its parents. Raises FileError saying why it can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise to_file_error(error, folder) from error
    return folder


def to_file_error(error: OSError, path: Path) -> FileError:
    """The system's error as a sentence with the place and the remedy."""
    if isinstance(error, FileError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FileError(f"the disk is full: {path} could not be written; free some space, then resume")
    if WINDOWS and isinstance(error, PermissionError):
        return FileError(f"{path} can't be written: it is open in another program, or permission is denied")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return FileError(f"{path} can't be written: permission denied; choose another folder with --output")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return FileError(f"{path} can't be a folder: a file is in its place; choose another with --output")
    return FileError(f"{path}: {error.strerror or error}")


@contextlib.contextmanager
def ignore_broken_pipe() -> Iterator[None]:
    """Within the block standard output may lose its reader: what is written from then on goes nowhere."""
    try:
        yield
    except OSError as error:
        # on Windows it is EINVAL (CPython's subprocess.Popen._stdin_write)
        lost = isinstance(error, BrokenPipeError) or (WINDOWS and error.errno == errno.EINVAL and not error.filename)
        if not lost:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
