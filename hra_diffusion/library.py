"""Saved adapters: found by name or file, replace on a pipeline, renamed, binned, imported."""

from __future__ import annotations

import difflib
import functools
import itertools
import math
import shlex
import shutil
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
from hra_diffusion.files import make_folder, move, replace, validated_name

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter file and what it says of itself."""

    path: Path
    info: AdapterInfo


def find_adapter(name_or_file: str, roots: Sequence[Path]) -> Path:
    """The file of an adapter given by path, or by name in one of the ``roots``.

    A run that is not finished gives its newest checkpoint. Raises UserError saying where was looked.
    """
    given = Path(name_or_file)
    if given.is_file():
        return given
    if given.suffix in (".safetensors", *PICKLE_SUFFIXES) or given.name != name_or_file:
        raise UserError(_no_file(given))
    name = validated_name(name_or_file)
    decomposed = unicodedata.normalize("NFD", name)  # as earlier versions may have written it
    for root, spelling in itertools.product(roots, dict.fromkeys((name, decomposed))):
        checkpoints = sorted(root.glob(f"{spelling}/checkpoints/[0-9]*/adapter.safetensors"), reverse=True)
        for path in (root / spelling / f"{spelling}.safetensors", root / f"{spelling}.safetensors", *checkpoints):
            if path.is_file():
                return path
    if given.is_dir():
        raise UserError(_no_file(given))
    known = ", ".join(sorted({adapter.info.name for adapter in list_adapters(roots)})) or "none"
    places = ", ".join(str(root) for root in roots)
    raise UserError(f"no adapter named {name!r} in {places} (there: {known}); give its file, or its folder by --output")


def _no_file(path: Path) -> str:
    """The message for a path that is no adapter file; names similar files, or `import` for another program's folder."""
    if path.is_dir() and adapter_file.find_weights(path):
        return f"{path} is another program's folder; bring it in with {IMPORT_COMMAND} {shlex.quote(str(path))}"
    files = [file for pattern in ("*.safetensors", "*/*.safetensors") for file in path.parent.glob(pattern)]
    by_stem = {file.stem: str(file) for file in files}
    near = [by_stem[stem] for stem in difflib.get_close_matches(path.stem, by_stem, n=3)]
    return f"there is no adapter file {path}" + (f"; similar files: {', '.join(near)}" if near else "")


def list_adapters(roots: Sequence[Path]) -> Iterator[SavedAdapter]:
    """Every finished adapter in the roots, by name; files that are not ours are passed over."""
    paths = {
        path.resolve()
        for root in roots
        for pattern in ("*.safetensors", "[!.]*/*.safetensors")
        for path in root.glob(pattern)
    }
    for path in sorted(paths, key=lambda path: path.name.casefold()):
        try:
            yield SavedAdapter(path, read_info(path))
        except AdapterFileError:
            continue


@functools.lru_cache(maxsize=200)
def count_parameters(path: Path) -> int:
    """How many trained numbers an adapter file holds."""
    with safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 (not a dict)


def training_costs(path: Path, info: AdapterInfo) -> dict[str, float]:
    """What an adapter took: "parameters", "megabytes" of the file and, where that says so, "seconds" of training and
    the most "memory" held in it, in GiB: the accelerator's, or the whole process's on a CPU."""
    seconds, memory = sum(info.training.get("seconds", {}).values()), info.training.get("memory", 0) / 2**30
    taken: dict[str, float] = {"parameters": count_parameters(path), "megabytes": path.stat().st_size / 1e6}
    return taken | {key: value for key, value in (("seconds", seconds), ("memory", memory)) if value}


def display_name(path: Path) -> str:
    """How an adapter file is called: its own name, and for a checkpoint the step: "Rex step 50"."""
    name = read_info(path).name
    return f"{name} step {int(path.parent.name)}" if path.parent.parent.name == "checkpoints" else name


def load_unique(pipe: DiffusionPipeline, path: Path) -> AdapterInfo:
    """Load an adapter under its name (see ``display_name``), or "name 2" where that is on the pipeline already."""
    name = display_name(path)
    taken, number, free = pipeline.loaded(pipe), 2, name
    while free in taken:
        free, number = f"{name} {number}", number + 1
    return pipeline.load(pipe, path, free)


def rename(path: Path, name: str) -> Path:
    """Give an adapter another name: inside its file, the file's own, and its folder's where that had the old one.

    Raises UserError for a name that can't be, or is taken.
    """
    info, old, name = read_info(path), path.stem, validated_name(name)
    own_folder = path.parent.name == old
    folder = path.parent.with_name(name) if own_folder else path.parent
    new = folder / f"{name}.safetensors"
    if new.exists() or (own_folder and folder.exists()):
        raise UserError(f"there is an adapter called {name!r} already; take another name")
    adapter_file.rewrite_info(path, info.model_copy(update={"name": name}))
    move(path, path.with_name(new.name))
    if own_folder:
        move(path.parent, folder)
    return new


def unused_name(name: str, root: Path) -> str:
    """The name, or a numbered one where it is taken. Raises UserError for a name that no adapter can have."""
    free, number = validated_name(name), 2
    while (root / free).exists():
        free, number = f"{name} {number}", number + 1
    return free


def add_file(file: Path, root: Path) -> Path:
    """Copy an adapter file into a folder of its own, under its own name or a numbered one; returns the copy.

    Raises AdapterFileError for anything that is not a whole adapter of ours: nothing is copied then.
    """
    info = adapter_file.read(file)[0]
    name = unused_name(info.name, root)
    copy = root / name / f"{name}.safetensors"
    temporary = make_folder(copy.parent) / ".import.tmp"
    shutil.copyfile(file, temporary)
    adapter_file.rewrite_info(temporary, info.model_copy(update={"name": name}))
    replace(temporary, copy)
    return copy
