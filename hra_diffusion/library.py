"""Saved adapters: find, list, load, rename and copy their files."""

from __future__ import annotations

import contextlib
import difflib
import functools
import itertools
import math
import shlex
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from hra_diffusion import pipeline
from hra_diffusion.adapters import adapter_file
from hra_diffusion.adapters.adapter_file import (
    IMPORT_COMMAND,
    PICKLE_SUFFIXES,
    AdapterFileError,
    AdapterInfo,
    read_info,
)
from hra_diffusion.errors import UserError
from hra_diffusion.files import make_folder, move
from hra_diffusion.names import first_free, unused_name, validated_name

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter file and its metadata."""

    path: Path
    info: AdapterInfo


def find_adapter(name_or_file: str, roots: Sequence[Path]) -> Path:
    """Return the file of an adapter given by path, or by name in one of the ``roots``.

    For an unfinished run this is its newest checkpoint. Raises UserError if there is no such adapter.
    """
    given = Path(name_or_file)
    if given.is_file():
        return given
    if given.suffix in (".safetensors", *PICKLE_SUFFIXES) or given.name != name_or_file:
        raise UserError(_no_file(given))
    name = validated_name(name_or_file)
    decomposed = unicodedata.normalize("NFD", name)  # earlier versions may have written this form
    for root, spelling in itertools.product(roots, dict.fromkeys((name, decomposed))):
        checkpoints = sorted(root.glob(f"{spelling}/checkpoints/[0-9]*/adapter.safetensors"), reverse=True)
        for path in (root / spelling / f"{spelling}.safetensors", root / f"{spelling}.safetensors", *checkpoints):
            if path.is_file():
                return path
    if given.is_dir():
        raise UserError(_no_file(given))
    known = ", ".join(sorted({adapter.info.name for adapter in list_adapters(roots)})) or "none"
    searched = ", ".join(str(root) for root in roots)
    raise UserError(
        f"no adapter named {name!r} in {searched} (found: {known}); give its file, or its output folder with --output"
    )


def _no_file(path: Path) -> str:
    """Return the message for a missing adapter file: similar files, or how to import another program's folder."""
    if path.is_dir() and adapter_file.find_weights(path):
        return f"{path} is another program's folder; import it with {IMPORT_COMMAND} {shlex.quote(str(path))}"
    files = [file for pattern in ("*.safetensors", "*/*.safetensors") for file in path.parent.glob(pattern)]
    by_stem = {file.stem: str(file) for file in files}
    similar = [by_stem[stem] for stem in difflib.get_close_matches(path.stem, by_stem, n=3)]
    return f"there is no adapter file {path}" + (f"; similar files: {', '.join(similar)}" if similar else "")


def list_adapters(roots: Sequence[Path]) -> Iterator[SavedAdapter]:
    """Yield the finished adapters in the ``roots``, sorted by file name; other and broken files are skipped."""
    paths = {
        path.resolve()
        for root in roots
        for pattern in ("[!.]*.safetensors", "[!.]*/[!.]*.safetensors")
        for path in root.glob(pattern)
    }
    for path in sorted(paths, key=lambda path: path.name.casefold()):
        with contextlib.suppress(AdapterFileError):
            yield SavedAdapter(path, read_info(path))


@functools.lru_cache(maxsize=200)
def count_parameters(path: Path) -> int:
    """Return the number of parameters in an adapter file."""
    with safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 (not a dict)


def training_costs(path: Path, info: AdapterInfo) -> dict[str, float]:
    """Return an adapter's costs: "parameters", "megabytes" of its file and, if recorded, "seconds" and "memory".

    "seconds": training time. "memory": peak memory in GiB, of the accelerator or, on a CPU, of the process.
    """
    seconds, memory = sum(info.training.get("seconds", {}).values()), info.training.get("memory", 0) / 2**30
    costs: dict[str, float] = {"parameters": count_parameters(path), "megabytes": path.stat().st_size / 1e6}
    return costs | {key: value for key, value in (("seconds", seconds), ("memory", memory)) if value}


def display_name(path: Path) -> str:
    """Return the name in an adapter file; for a checkpoint, with its step: "Rex step 50"."""
    name = read_info(path).name
    return f"{name} step {int(path.parent.name)}" if path.parent.parent.name == "checkpoints" else name


def load_unique(pipe: DiffusionPipeline, path: Path) -> AdapterInfo:
    """Load an adapter under its ``display_name``, or "name 2" and so on if that name is on the pipeline already."""
    return pipeline.load(pipe, path, first_free(display_name(path), pipeline.loaded(pipe).__contains__))


def rename(path: Path, name: str) -> Path:
    """Rename an adapter in its metadata, its file and, if that has the same name, its folder; returns the new file.

    Raises UserError for an invalid name or one in use.
    """
    info, old, name = read_info(path), path.stem, validated_name(name)
    own_folder = path.parent.name == old
    folder = path.parent.with_name(name) if own_folder else path.parent
    new = folder / f"{name}.safetensors"
    if new.exists() or (own_folder and folder.exists()):
        raise UserError(f"there is an adapter named {name!r} already; choose another name")
    adapter_file.rewrite_info(path, info.model_copy(update={"name": name}))
    move(path, path.with_name(new.name))
    if own_folder:
        move(path.parent, folder)
    return new


def new_folder(name: str, root: Path) -> Path:
    """Create a folder of this name in ``root``, numbered if the name is in use, and return it.

    Processes that do so at the same time get different folders.
    """
    while True:
        folder = root / unused_name(name, make_folder(root))
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder


def add_file(file: Path, folder: Path) -> Path:
    """Copy an adapter file into a folder, whose name becomes the adapter's; returns the copy.

    Raises AdapterFileError, and copies nothing, unless it is a complete adapter file of this project.
    """
    info, tensors = adapter_file.read(file)
    copy = folder / f"{folder.name}.safetensors"
    adapter_file.save(copy, {}, info.model_copy(update={"name": folder.name}), tensors)
    return copy
