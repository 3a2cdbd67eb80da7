"""Atomic file operations."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hra_diffusion.errors import UserError, shown
from hra_diffusion.names import is_text

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
WINDOWS = os.name == "nt"
BUSY_SECONDS = 1.0
"""On Windows, how long to retry while another process has a file open."""
CHECKSUM = "sha256"
"""Key in the metadata of a safetensors file: the SHA-256 of the file with zeros in place of this value."""
_NO_CHECKSUM = "0" * 64


class FileError(UserError, OSError):
    """A file or folder can't be read or written."""


def path_of(text: str | Path) -> Path:
    """Return the path that a person wrote, with ``~`` expanded. Raises FileError if no file can have it."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise FileError(f"{shown(str(text))}: there is no such user; write the whole path") from None
    if not is_text(str(path)):
        raise FileError(f"{shown(str(path))} is not UTF-8 text; rename the file or folder")
    if any(len(part.encode()) > 255 for part in path.parts) or len(str(path).encode()) > 4095:
        raise FileError(f"{shown(str(path))} is too long for a path")
    return path


@contextlib.contextmanager
def atomic_path(path: Path, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` for a file or folder, which replaces ``path`` if the block succeeds.

    If it fails, the temporary file or folder is deleted. Creates parent folders. A ``private`` file can be read by its
    owner alone, at every moment. Raises FileError for a full disk, a read-only folder, or a file in the place of a
    folder.
    """
    temporary = _temporary_path(path)
    try:
        make_folder(path.parent)
        remove(temporary)
        if private:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield temporary
        if not private:
            _apply_default_mode(temporary)
        flush(temporary)
        replace(temporary, path)
    except OSError as error:
        raise to_file_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            remove(temporary)


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a new empty folder beside ``path``, which is deleted after the block. Raises FileError."""
    folder = _temporary_path(path)
    remove(folder)
    try:
        yield make_folder(folder)
    finally:
        with contextlib.suppress(OSError):
            remove(folder)


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp{path.suffix}")


_TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+-\d+(\.tmp(\.[^.]+)?|(\.tmp)?(?P<old>\.old))")
"""Names of ``_temporary_path``, and of the outdated folders that ``replace`` moves aside."""


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is one that a process writes at the moment, or left when it was killed."""
    return _TEMPORARY.fullmatch(name) is not None


def sweep(folder: Path, seconds: float = 3600.0) -> None:
    """Delete the temporary files that killed processes left in a folder and below, if unchanged for ``seconds``.

    A folder that was moved aside to be replaced, and was not, is moved back.
    """
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if (match := _TEMPORARY.fullmatch(name)) is None:
                continue
            path, target = Path(parent, name), Path(parent, match["name"])
            with contextlib.suppress(OSError):
                if max(file.stat().st_mtime for file in [path, *_files(path)]) < time.time() - seconds:
                    restored = match["old"] and path.is_dir() and not target.exists()
                    move(path, target) if restored else remove(path)
        folders[:] = [name for name in folders if not is_temporary(name)]


def _apply_default_mode(path: Path) -> None:
    """Give files that only their owner can read, as safetensors writes them, the default mode of new files."""
    private = [file for file in _files(path) if not file.stat().st_mode & 0o077]
    if private:
        with temporary_folder(path.with_name("mode")) as folder:
            plain = folder / "plain"
            plain.touch()
            for file in private:
                file.chmod(plain.stat().st_mode)


def flush(path: Path) -> None:
    """Flush a file, or all files of a folder, to disk: renamed unflushed files may be empty after a power cut."""
    for file in _files(path):
        with file.open("r+b") as stream:  # Windows flushes only files open for writing
            os.fsync(stream.fileno())


def _files(path: Path) -> list[Path]:
    return [file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]


def replace(temporary: Path, path: Path) -> None:
    """Move ``temporary`` to ``path``. A folder at ``path`` is moved aside first and deleted afterwards."""
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
    """Move a folder, or a file, which replaces an existing one. Raises FileError."""
    try:
        _retry_while_busy(lambda: source.replace(target))
    except OSError as error:
        raise to_file_error(error, target) from error


def _retry_while_busy(action: Callable[[], T]) -> T:
    """Return the result of ``action``. On Windows, retry for a second while another process has the file open.

    Virus scanners and readers open files briefly; pip retries, too (pip/_internal/utils/filesystem.py).
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return action()
        except PermissionError:
            if not WINDOWS or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def remove(path: Path) -> None:
    """Delete a file or a folder if it exists."""
    if path.is_dir():
        _retry_while_busy(lambda: shutil.rmtree(path))
    else:
        _retry_while_busy(lambda: path.unlink(missing_ok=True))


def next_numbered(parent: Path, suffix: str = "") -> Path:
    """Return the path after the highest of parent/0001, parent/0002, …, with the suffix of a file."""
    numbers = (path.stem for path in parent.glob(f"[0-9]*{suffix}"))
    return parent / f"{1 + max((int(number) for number in numbers if number.isdecimal()), default=0):04d}{suffix}"


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_bytes(path: Path) -> bytes:
    """Return the content of a file."""
    return _retry_while_busy(path.read_bytes)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with _retry_while_busy(lambda: path.open("rb")) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_private(path: Path, text: str) -> None:
    """Write a text file atomically that only its owner can read, at every moment."""
    with atomic_path(path, private=True) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; None if it is missing, empty or damaged, as after a power cut."""
    try:
        return json.loads(read_bytes(path).decode())
    except (OSError, ValueError, RecursionError):
        return None


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file. An incomplete last line, as after a power cut, is ended first. Raises FileError."""
    try:
        with _retry_while_busy(lambda: path.open("ab+")) as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
            incomplete = file.read(1) not in (b"", b"\n")
            file.write(("\n" * incomplete + line + "\n").encode())
    except OSError as error:
        raise to_file_error(error, path) from error


def save_tensors(
    path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None, checksum: bool = False
) -> None:
    """Write tensors to a safetensors file atomically; floating-point tensors as float32.

    ``checksum`` adds a checksum of the file to its metadata, for ``has_changed``.
    """
    data = _serialised(tensors, {**(metadata or {}), CHECKSUM: _NO_CHECKSUM} if checksum else metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
        if checksum:
            with temporary.open("r+b") as file:
                file.seek(data.index(_checksum_entry(_NO_CHECKSUM)))
                file.write(_checksum_entry(hashlib.sha256(data).hexdigest()))


def has_changed(path: Path, metadata: Mapping[str, str], names: Collection[str]) -> bool:
    """Return whether a safetensors file with this metadata has changed since it was saved.

    Without a checksum, as in files of earlier versions, only an entry that is not among ``names`` shows a change, as in
    the name of the checksum.
    """
    if (stored := metadata.get(CHECKSUM)) is None:
        return not metadata.keys() <= set(names)
    with path.open("rb") as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
        digest = hashlib.sha256(length + header.replace(_checksum_entry(stored), _checksum_entry(_NO_CHECKSUM), 1))
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest() != stored


def _checksum_entry(value: str) -> bytes:
    return f'"{CHECKSUM}":"{value}"'.encode()


def tensors_hash(tensors: "Mapping[str, Tensor]") -> str:
    """Return the SHA-256, in hexadecimal, of what ``save_tensors`` writes after the file's header."""
    data = memoryview(_serialised(tensors))
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def _serialised(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> bytes:
    from safetensors.torch import save

    return save({key: _storable(tensor) for key, tensor in tensors.items()}, dict(metadata or {}))


def _storable(tensor: "Tensor") -> "Tensor":
    tensor = tensor.detach().cpu().contiguous()
    return tensor.float() if tensor.is_floating_point() else tensor


def make_folder(folder: Path) -> Path:
    """Create a folder and its parents. Raises FileError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise to_file_error(error, folder) from error
    return folder


def to_file_error(error: OSError, path: Path) -> FileError:
    """Return a FileError for an operating-system error, with the path and what to do."""
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
    """If the reader of standard output goes away within the block, discard further output."""
    try:
        yield
    except OSError as error:
        # EINVAL on Windows (CPython's subprocess.Popen._stdin_write)
        broken = isinstance(error, BrokenPipeError) or (WINDOWS and error.errno == errno.EINVAL and not error.filename)
        if not broken:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
