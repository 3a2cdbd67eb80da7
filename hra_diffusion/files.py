"""Names and files from outside, checked; and files written whole or not at all."""

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import tempfile
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hra_diffusion.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MAX_NAME = 64
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}


class FileError(UserError, OSError):
    """A file or folder can't be used: what, where and what to do."""


def checked_name(name: str) -> str:
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
    if not name[0].isalnum() or name[-1] == " " or name.casefold() in _RESERVED:
        raise UserError(f"the name {shown} can't be used for a folder; start with a letter or digit, end without space")
    return name


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
        put(temporary, path)
    except OSError as error:
        raise explained(error, path) from error
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
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def _files(path: Path) -> list[Path]:
    return [file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]


def put(temporary: Path, path: Path) -> None:
    """Rename ``temporary`` to ``path``; a folder that stands there steps aside first and is then deleted."""
    if not path.is_dir():
        temporary.replace(path)
        return
    outdated = temporary.with_suffix(".old")
    path.rename(outdated)
    temporary.rename(path)
    remove(outdated)


def remove(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def free_folder(parent: Path) -> Path:
    """The first of parent/0001, parent/0002, … that is not there."""
    return next(folder for number in itertools.count(1) if not (folder := parent / f"{number:04d}").exists())


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
        raise explained(error, folder) from error
    return folder


def explained(error: OSError, path: Path) -> FileError:
    """The system's error as a sentence with the place and the remedy."""
    if isinstance(error, FileError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FileError(f"the disk is full: {path} could not be written; free some space, then resume")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return FileError(f"{path} can't be written: permission denied; choose another folder with --output")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return FileError(f"{path} can't be a folder: a file is in its place; choose another with --output")
    return FileError(f"{path}: {error.strerror or error}")
