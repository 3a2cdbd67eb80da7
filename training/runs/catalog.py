"""Read the runs and adapters of an output folder into its index.

Files that did not change are not read again. Programs enter what they write themselves; ``scan_runs`` and
``scan_adapters`` find what else has changed, such as a folder that was copied in by hand.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hra_diffusion.adapters.adapter_file import OtherFileError, read_info
from hra_diffusion.errors import UserError
from training import config as configs
from training.runs import owners, state
from training.runs.index import Index
from training.runs.run_folder import Run
from training.runs.state import RunState

SCAN_SECONDS = 5.0
"""The folders are scanned at most this often, by all programs together."""
_scanning = threading.Lock()


def scan_runs(index: Index, force: bool = False) -> None:
    """Enter the runs whose files have changed, and remove those whose folders are gone."""
    if not _due(index, "scanned", force):
        return
    known = {row["name"]: row["run_stamp"] for row in index.rows("SELECT name, run_stamp FROM folders")}
    found = {folder.name for folder in _folders(index.output)}
    for name in found:
        if state.stamp(index.output / name) != known.get(name, ""):
            _enter_run(index, name)
    for name in known.keys() - found - {""}:
        index.forget(name)


def refresh_run(index: Index, name: str) -> None:
    """Enter a run if its files have changed."""
    if state.stamp(index.output / name) != index.value("SELECT run_stamp FROM folders WHERE name = ?", name):
        _enter_run(index, name)


def _enter_run(index: Index, name: str) -> None:
    folder = index.output / name
    for _ in range(3):  # a file that was just damaged, or is being written, changes meanwhile
        stamp = state.stamp(folder)
        now, owner = _state(folder), owners.read(folder)
        with index.writing() as database:
            if state.stamp(folder) != stamp:
                continue
            if now:
                state.enter(index, name, now, stamp)
            else:  # an adapter without a run, or another program's folder
                database.execute(
                    "INSERT INTO folders (name, run_stamp, owner, shared) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO "
                    "UPDATE SET run_stamp = excluded.run_stamp, status = NULL, owner = excluded.owner, "
                    "shared = excluded.shared",
                    (name, stamp, owner.owner, owner.shared),
                )
            return


def _state(folder: Path) -> RunState | None:
    """Return the state of a run, or None for another program's folder."""
    if not (folder / state.FILE).exists():
        try:
            configs.read_run(folder / "config.yaml")
        except UserError:
            return None
    return Run(folder).state


def scan_adapters(index: Index, force: bool = False) -> None:
    """Enter the finished adapters and checkpoints whose folders have changed, and remove those that are gone."""
    if not _due(index, "scanned adapters", force):
        return
    known = {row["name"]: row["adapter_stamp"] for row in index.rows("SELECT name, adapter_stamp FROM folders")}
    found = {"": index.output} | {folder.name: folder for folder in _folders(index.output)}
    for name, folder in found.items():
        if (stamp := _adapter_stamp(folder)) != known.get(name, ""):
            _enter_adapters(index, name, folder, stamp)
    for name in known.keys() - found.keys():
        index.forget(name)


def _enter_adapters(index: Index, folder_name: str, folder: Path, stamp: str) -> None:
    known = {
        row["path"]: (row["size"], row["modified"])
        for row in index.rows("SELECT path, size, modified FROM adapters WHERE folder = ?", folder_name)
    }
    found = {path.relative_to(index.output).as_posix(): path for path in _adapter_files(folder, folder_name)}
    rows = []
    for key, path in found.items():
        with contextlib.suppress(OSError):  # deleted meanwhile
            status = path.stat()
            if known.get(key) != (status.st_size, status.st_mtime_ns):
                rows.append((key, folder_name, *_facts(path), status.st_size, status.st_mtime_ns))
    owner = owners.read(folder)
    with index.writing() as database:
        database.executemany(
            "INSERT OR REPLACE INTO adapters (path, folder, step, name, method, base, subject, class_noun, words, "
            "error, size, modified) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        database.executemany("DELETE FROM adapters WHERE path = ?", [(key,) for key in known.keys() - found.keys()])
        database.execute(
            "INSERT INTO folders (name, adapter_stamp, owner, shared) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET adapter_stamp = excluded.adapter_stamp",
            (folder_name, stamp, owner.owner, owner.shared),
        )


def _facts(path: Path) -> tuple[Any, ...]:
    """Return step, name, method, base model, subject, class noun, words to search and error of an adapter file."""
    step = int(path.parent.name) if path.parent.parent.name == "checkpoints" else None
    try:
        info = read_info(path)
    except OtherFileError as error:
        return step, None, "", "", "", "", "", str(error)
    except UserError as error:
        return step, path.stem, "", "", "", "", path.name.casefold(), str(error).replace(str(path), path.name)
    words = f"{info.name} {info.method} {info.base} {info.prompt_names}".casefold()
    return step, info.name, info.method, info.base, info.subject, info.class_noun, words, ""


def _adapter_files(folder: Path, name: str) -> Iterator[Path]:
    yield from (path for path in folder.glob("*.safetensors") if not path.name.startswith("."))
    if name:
        yield from folder.glob("checkpoints/[0-9]*/adapter.safetensors")


def _adapter_stamp(folder: Path) -> str:
    """Return the modification times of the folders that hold adapters; files are added to them and renamed there."""
    times = []
    for path in (folder, folder / "checkpoints"):
        with contextlib.suppress(OSError):
            times.append(str(path.stat().st_mtime_ns))
    return " ".join(times)


def _folders(output: Path) -> list[Path]:
    """Return the folders in an output folder that may hold runs or adapters."""
    try:
        with os.scandir(output) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return []


def _due(index: Index, name: str, force: bool) -> bool:
    """Return whether a scan is due, and note that it takes place."""
    with _scanning:
        last = index.value("SELECT value FROM facts WHERE name = ?", name) or 0.0
        if not force and 0 <= time.time() - last < SCAN_SECONDS:
            return False
        with index.writing() as database:
            database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, time.time()))
    return True


def reindex(index: Index) -> tuple[int, int]:
    """Delete the index and read all files again. Returns the numbers of runs and adapters.

    Leases of processes at work are kept.
    """
    with index.writing() as database:
        for table in ("folders", "adapters"):
            database.execute(f"DELETE FROM {table}")
    scan_runs(index, force=True)
    scan_adapters(index, force=True)
    runs = index.value("SELECT count(*) FROM folders WHERE status IS NOT NULL")
    return runs, index.value("SELECT count(*) FROM adapters WHERE error = ''")
