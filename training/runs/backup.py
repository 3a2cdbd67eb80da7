"""Backup of an output folder as one tar file, and its restoration.

The archive holds the files as they are, and last ``backup.json`` with the SHA-256 of each, by which ``restore`` checks
them. Left out is what programs make again or need for a moment only: the index, uploads and temporary files.
"""

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from hra_diffusion.files import (
    FileError,
    atomic_path,
    is_temporary,
    make_folder,
    move,
    sha256,
    temporary_folder,
    to_file_error,
)

MANIFEST = "backup.json"
LEFT_OUT = (".queue", ".gradio", ".cluster")
"""Folders in the output folder: the index and the log of the workers; uploads, and copies of downloads; copies of the
runs that a cluster trains."""


class Backup(NamedTuple):
    """Number of files in an archive, and their bytes."""

    files: int
    bytes: int


def write(output: Path, archive: Path) -> Backup:
    """Write an archive of an output folder. Programs may use the folder meanwhile.

    Files are replaced or appended to, so that each is whole; a run that trains continues from its last checkpoint.
    Raises FileError if the folder is missing, the archive exists or lies in the folder, or a file can't be read.
    """
    if not output.is_dir():
        raise FileError(f"there is no folder {output} to back up; choose another with --output")
    if archive.exists():
        raise FileError(f"{archive} exists already; delete it or choose another name")
    if archive.resolve().is_relative_to(output.resolve()):
        raise FileError(f"{archive} lies in {output}, the folder to back up; choose another place")
    hashes, size = dict[str, str](), 0
    with atomic_path(archive) as temporary, tarfile.open(temporary, "w") as tar:
        for path in _files(output):
            name = path.relative_to(output).as_posix()
            if (file := _open(path)) is None:
                continue
            with file:
                entry = tar.gettarinfo(arcname=name, fileobj=file)
                hashes[name] = _add(tar, entry, file)
                size += entry.size
        manifest = json.dumps({"files": hashes}, indent=1).encode()
        entry = tarfile.TarInfo(MANIFEST)
        entry.size = len(manifest)
        _add(tar, entry, io.BytesIO(manifest))
    return Backup(len(hashes), size)


def _files(output: Path) -> Iterator[Path]:
    """Yield the files to back up, also those behind links."""
    seen = set[Path]()
    for parent, folders, names in os.walk(output, onerror=_require_deleted, followlinks=True):
        folder = Path(parent)
        if folder.resolve() in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(folder.resolve())
        left_out = (*LEFT_OUT, "lost+found") if folder == output else ()  # of a mounted disk, for root alone
        folders[:] = sorted(name for name in folders if name not in left_out and not is_temporary(name))
        yield from (folder / name for name in sorted(names) if not is_temporary(name))


def _open(path: Path) -> IO[bytes] | None:
    """Open a file to back up; None for a pipe or a socket, and for what has been deleted since it was listed."""
    try:
        return path.open("rb") if stat.S_ISREG(path.stat().st_mode) else None
    except OSError as error:
        _require_deleted(error)
        return None


def _require_deleted(error: OSError) -> None:
    """Raise FileError unless a file or folder could not be opened because it is gone. A broken link is not gone."""
    if not isinstance(error, FileNotFoundError) or Path(error.filename).is_symlink():
        raise _unreadable(error.filename, error) from error


def _unreadable(path: str, error: OSError) -> FileError:
    return FileError(f"{path} can't be read ({error.strerror}); nothing was backed up")


class _HashingReader:
    """A file that computes the SHA-256 of what is read from it."""

    def __init__(self, file: IO[bytes]):
        self._file, self.hash = file, hashlib.sha256()

    def read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise _unreadable(self._file.name, error) from error
        self.hash.update(data)
        return data


def _add(tar: tarfile.TarFile, entry: tarfile.TarInfo, file: IO[bytes]) -> str:
    """Add ``entry.size`` bytes of a file, which may grow meanwhile. Return their SHA-256."""
    reader = _HashingReader(file)
    tar.addfile(entry, reader)  # pyright: ignore[reportArgumentType]  (it only reads)
    return reader.hash.hexdigest()


def restore(archive: Path, output: Path) -> Backup:
    """Restore an archive into a new or empty output folder, whole or not at all.

    Raises FileError if the folder is not empty, or the archive is missing, damaged or no backup.
    """
    if not archive.is_file():
        raise FileError(f"there is no file {archive}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileError(f"{output} is not empty; restore into a new folder with --output")
    make_folder(output)
    with temporary_folder(output / "restored") as folder:  # inside, since the folder may be a mounted volume
        size = _extract(archive, folder)
        files = _check(archive, folder)
        (folder / MANIFEST).unlink()
        for path in sorted(folder.iterdir()):
            move(path, output / path.name)
    return Backup(files, size)


def _extract(archive: Path, folder: Path) -> int:
    """Extract the plain files of an archive; return their bytes."""
    size = 0
    try:
        with tarfile.open(archive, "r:") as tar:
            for entry in tar:
                if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or entry.issparse():
                    raise FileError(f"{archive} holds more than plain files; it is no backup of this program")
                tar.extract(entry, folder, filter="data")
                size += entry.size if entry.name != MANIFEST else 0
    except (tarfile.TarError, EOFError) as error:
        raise FileError(f"{archive} is damaged or no backup ({error}); nothing was restored") from error
    except OSError as error:
        raise to_file_error(error, folder.parent) from error
    return size


def _check(archive: Path, folder: Path) -> int:
    """Compare the extracted files with the list of the archive; return their number."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, TypeError, KeyError):
        raise FileError(f"{archive} is incomplete or no backup: its list of files is missing") from None
    found = {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}
    if changed := [name for name in {**hashes, **found} if name != MANIFEST and hashes.get(name) != found.get(name)]:
        raise FileError(f"{archive} is damaged: {changed[0]} differs from its checksum; nothing was restored")
    return len(hashes)
