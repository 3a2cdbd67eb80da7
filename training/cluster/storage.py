"""Mirror of a run's folder in storage that all machines of a cluster reach: file://, s3://, gs:// and others of fsspec.

    {storage}/{name}/manifest.json      state of the run, and the SHA-256 of each file
    {storage}/{name}/…                  the files of the run, as in its folder
    {storage}/{name}/stop, sample-now   requests to the process that trains the run

Files are uploaded whole, and then named in the manifest, a single object that is replaced at once. A file that the
manifest does not name is not there: no reader sees half a checkpoint. Paths of the run's folder in texts, such as those
of photos in ``config.yaml``, are stored as URLs and read as paths of the reader's own folder.
"""

import contextlib
import hashlib
import json
import re
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import fsspec
from pydantic import BaseModel, ConfigDict

from hra_diffusion import yaml_text
from hra_diffusion.errors import UserError, first_line
from hra_diffusion.files import append_line, atomic_path, make_folder, remove, sha256, write_text
from training.runs import owners, state
from training.runs.state import LOG, Request, RunState

MANIFEST = "manifest.json"
OWN_FILES = (state.FILE, owners.FILE, "stop", "sample-now")
"""Files of a run's folder that are not mirrored as files."""
CONFIG = "config.yaml"
TEXTS = (CONFIG, LOG, "process.log")
"""Files that change, and may hold paths of the run's folder."""
OWN = ".cluster"
"""Folder in an output folder: the storage of runs that name none."""
ID = ".id"
"""File with the random id of a run's folder or an output folder. It stays when the folder is moved or restored."""


class StorageError(UserError):
    """The storage of a cluster's runs can't be used."""


class SupersededError(StorageError):
    """Another attempt trains this run: the cluster had lost sight of this one."""


class DamagedError(StorageError):
    """A file in the storage is not the one that was uploaded."""


@contextlib.contextmanager
def reaching(url: str) -> Iterator[None]:
    """Within the block, an error of the file system, of which each has its own, becomes a StorageError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise StorageError(f"the storage {url} can't be reached ({first_line(error)}); resume to try again") from error


class Manifest(BaseModel):
    """What is in the storage of a run.

    Attributes:
        output: id of the output folder: no two of them share a place.
        run: id of the run: a later one of the same name in the output folder replaces it.
        attempt: identifies the attempt that may write, the latest one; "" for the queue.
        state: the run's state. It never refers to files that ``files`` does not name.
        files: SHA-256 by path.
    """

    model_config = ConfigDict(frozen=True)

    output: str
    run: str
    attempt: str = ""
    state: RunState
    files: dict[str, str] = {}


class Mirror:
    """The folder of a run and its place in the storage.

    Args:
        folder: the run's folder.
        url: its place, such as "s3://bucket/runs/Rex".
        attempt: identifies the task that writes; "" for the queue.

    Raises StorageError if there is no file system for the URL.
    """

    def __init__(self, folder: Path, url: str, attempt: str = ""):
        self.folder, self.url, self.attempt = folder.resolve(), url.rstrip("/"), attempt
        try:
            self._system, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StorageError(f"the storage {url} can't be used: {first_line(error)}") from error
        self._local = "file" in self._protocols
        self._known: dict[tuple[Path, int, int], str] = {}

    @property
    def _protocols(self) -> tuple[str, ...]:
        protocol = self._system.protocol
        return (protocol,) if isinstance(protocol, str) else tuple(protocol)

    def manifest(self) -> Manifest | None:
        """Return the manifest, or None if the run is not in the storage."""
        try:
            return Manifest.model_validate_json(self._system.cat_file(self._at(MANIFEST)))
        except FileNotFoundError:
            return None

    def claim(self, now: RunState) -> RunState | None:
        """Become the one that may write, with ``now`` as the run's state.

        If the stored run is no earlier and has files that the folder lacks, which ``push`` would delete, the state is
        returned with its step, for after a ``pull``. Raises StorageError if the place belongs to another output folder.
        """
        stored, output, run = self.manifest(), id_of(self.folder.parent), id_of(self.folder)
        if stored and stored.output != output and stored.run != run:
            raise StorageError(
                f"{self.url} belongs to a run of another output folder; choose another --name or --storage, "
                "or delete it"
            )
        files, ahead = stored.files if stored else {}, None
        lacking = not all(self._path(key).exists() for key in files)
        if stored and stored.run == run and stored.state.step >= now.step and lacking:
            now = ahead = now.model_copy(update={"step": stored.state.step})
        self._write_manifest(Manifest(output=output, run=run, attempt=self.attempt, state=now, files=files))
        return ahead

    def take_over(self, now: RunState) -> None:
        """Become the one that may write a run that is in the storage."""
        self._write_manifest(self._stored().model_copy(update={"attempt": self.attempt, "state": now}))

    def _stored(self) -> Manifest:
        if (stored := self.manifest()) is None:
            raise SupersededError(f"{self.url} was deleted")
        return stored

    def _own(self) -> Manifest:
        if (stored := self._stored()).attempt != self.attempt:
            raise SupersededError(f"another attempt trains {self.url}")
        return stored

    def push(self) -> None:
        """Upload the files that have changed, name them, and delete those that are gone.

        Raises SupersededError if another attempt has claimed the run.
        """
        stored = self._own()
        now = state.read(self.folder) or stored.state  # before the files: they may be newer, never older
        files = {}
        for path in self._files():
            key = path.relative_to(self.folder).as_posix()
            with contextlib.suppress(FileNotFoundError):  # pruned meanwhile
                files[key] = self._upload(path, key, stored.files.get(key))
        manifest = stored.model_copy(update={"state": now, "files": files})
        if manifest != stored:
            self._own()  # uploads take time
            self._write_manifest(manifest)
        for key in stored.files.keys() - files.keys():
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(self._at(key))

    def pull(self, strict: bool = False) -> RunState | None:
        """Make the folder equal to the storage, except for ``OWN_FILES``, and return the stored state.

        Folders appear whole. A damaged file, or one that is being replaced, is left out, unless ``strict``: then
        DamagedError is raised. Returns None if the run is not in the storage.
        """
        if (manifest := self.manifest()) is None:
            return None
        make_folder(self.folder)
        wholes: defaultdict[Path, list[str]] = defaultdict(list)
        for key in manifest.files:
            path = self._path(key)
            missing = [folder for folder in path.parents if folder.is_relative_to(self.folder) and not folder.exists()]
            wholes[missing[0] if missing else path].append(key)
        for whole, keys in wholes.items():
            try:
                self._download(whole, {key: manifest.files[key] for key in keys})
            except DamagedError:
                if strict:
                    raise
        for path in self._files():
            if path.relative_to(self.folder).as_posix() not in manifest.files:
                remove(path)
        return manifest.state

    def _download(self, whole: Path, digests: dict[str, str]) -> None:
        """Download a file, or a folder that is not there yet."""
        if whole.is_file():
            key = whole.relative_to(self.folder).as_posix()
            if self._digest(whole, key) == digests[key]:
                return None
            if key in TEXTS:
                return self._download_text(whole, key)
        with atomic_path(whole) as temporary:
            for key, digest in digests.items():
                target = temporary / self._path(key).relative_to(whole)
                make_folder(target.parent)
                if key in TEXTS:
                    target.write_text(self._read_text(key), encoding="utf-8", newline="\n")
                else:
                    self._download_file(key, target, digest)
        return None

    def _download_file(self, key: str, target: Path, digest: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._system.get_file(self._at(key), str(target))
        if not target.is_file() or sha256(target) != digest:
            raise DamagedError(f"{self._at(key)} is missing or damaged; resume the run from its last checkpoint")

    def _download_text(self, path: Path, key: str) -> None:
        """Replace a text; a log to which lines were added keeps its file, so that its readers go on."""
        before, after = path.read_text(encoding="utf-8"), self._read_text(key)
        if key == LOG and before.endswith("\n") and after.startswith(before):
            if more := after[len(before) :].strip("\n"):
                append_line(path, more)
        else:
            write_text(path, after)

    def send(self, what: Request) -> None:
        """Ask the process that trains the run."""
        self._write(what, b"\n")

    def take(self, what: Request) -> bool:
        """Return whether there was such a request since the last call."""
        try:
            self._system.info(self._at(what))
        except FileNotFoundError:
            return False
        self._system.rm_file(self._at(what))
        return True

    def delete(self) -> None:
        """Delete the run from the storage."""
        self._system.rm(self._root, recursive=True)

    def _files(self) -> Iterator[Path]:
        """Yield the files of the folder that are mirrored, without unfinished ones."""
        for path in sorted(self.folder.rglob("*")):
            parts = path.relative_to(self.folder).parts
            if path.is_file() and parts[0] not in OWN_FILES and not any(part.startswith(".") for part in parts):
                yield path

    def _upload(self, path: Path, key: str, stored: str | None) -> str:
        """Upload a file unless it is there, and return its hash."""
        if key in TEXTS:
            data = self._translated(key, _whole_lines(key, path.read_text(encoding="utf-8", errors="replace")), True)
            if (digest := hashlib.sha256(data.encode()).hexdigest()) != stored:
                self._write(key, data.encode())
            return digest
        if (digest := self._digest(path, key)) != stored:
            self._make_parent(key)
            self._system.put_file(str(path), self._at(key))
        return digest

    def _digest(self, path: Path, key: str) -> str:
        """Return the hash of a file as it is stored. Files but texts are read once."""
        if key in TEXTS:
            text = self._translated(key, path.read_text(encoding="utf-8", errors="replace"), True)
            return hashlib.sha256(text.encode()).hexdigest()
        status = path.stat()
        version = (path, status.st_size, status.st_mtime_ns)
        if version not in self._known:
            self._known[version] = sha256(path)
        return self._known[version]

    def _read_text(self, key: str) -> str:
        return self._translated(key, self._system.cat_file(self._at(key)).decode("utf-8", "replace"), False)

    def _translated(self, key: str, text: str, stored: bool) -> str:
        """Return a text with the paths of the folder as URLs (``stored``), or the other way round."""
        paths = (str(self.folder), self.url)
        before, after = paths if stored else paths[::-1]
        if key != "process.log":
            before, after = (json.dumps(place, ensure_ascii=False)[1:-1] for place in (before, after))
        if key != CONFIG:  # no part of a longer name, such as that of Rex-merged
            return re.sub(rf"{re.escape(before)}(?![\w-]|\.\w)", lambda _: after, text)
        values = json.dumps(yaml_text.parse(text), ensure_ascii=False)
        own = rf'(?<="){re.escape(before)}(?=["/\\])'
        return yaml_text.write(json.loads(re.sub(own, lambda _: after, values)))

    def _path(self, key: str) -> Path:
        """Return the local path of a file. Raises StorageError for one outside the folder."""
        parts = PurePosixPath(key).parts
        if not parts or parts[0] in OWN_FILES or any(part in ("..", "/") or part.startswith(".") for part in parts):
            raise StorageError(f"{self._at(MANIFEST)} names {key!r}, which is no file of a run")
        return self.folder.joinpath(*parts)

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _write_manifest(self, manifest: Manifest) -> None:
        self._write(MANIFEST, manifest.model_dump_json(exclude_defaults=True).encode())

    def _write(self, key: str, data: bytes) -> None:
        """Replace a small file at once, as object stores do; in a file system, by renaming."""
        self._make_parent(key)
        if not self._local:
            self._system.pipe_file(self._at(key), data)
            return
        with atomic_path(Path(self._at(key))) as temporary:
            temporary.write_bytes(data)

    def _make_parent(self, key: str) -> None:
        if self._local:
            make_folder(Path(self._at(key)).parent)


def _whole_lines(key: str, text: str) -> str:
    """Return a log without the line that is being written."""
    return text[: text.rfind("\n") + 1] if key == LOG else text


def place_of(storage: str | None, output: Path, name: str) -> str:
    """Return the URL of a run: in the given storage, or else in a hidden folder of the output folder."""
    return f"{(storage or default_storage(output)).rstrip('/')}/{name}"


def default_storage(output: Path) -> str:
    """Return the URL of the storage of runs that name none."""
    return f"file://{(output.resolve() / OWN).as_posix()}"


def id_of(folder: Path) -> str:
    """Return the id of a run's folder or an output folder, which gets one if it has none."""
    if not (file := folder / ID).is_file():
        write_text(file, uuid.uuid4().hex)
    return file.read_text(encoding="utf-8")


def delete_copies(folder: Path, output: Path) -> None:
    """Delete the copies of a run from the output folder's own storage. Its ``folder`` may be in the trash."""
    if (folder / ID).is_file():
        for manifest in (output / OWN).glob(f"*/{MANIFEST}"):
            if id_of(folder) in manifest.read_text(encoding="utf-8"):
                remove(manifest.parent)
