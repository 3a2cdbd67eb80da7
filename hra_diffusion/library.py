"""Saved adapters found by name or file, and put on a pipeline."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers import DiffusionPipeline

from hra_diffusion import pipeline
from hra_diffusion.adapter_file import AdapterFileError, AdapterInfo, read_info
from hra_diffusion.errors import UserError
from hra_diffusion.files import checked_name


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter file and what it says of itself."""

    path: Path
    info: AdapterInfo


def find_adapter(name_or_file: str, roots: Sequence[Path]) -> Path:
    """The file of an adapter given by path, or by name in one of the ``roots``.

    A run that is not finished gives its newest checkpoint. Raises UserError saying where was looked.
    """
    if name_or_file.endswith(".safetensors") or Path(name_or_file).is_file():
        return Path(name_or_file)
    name = checked_name(name_or_file)
    for root in roots:
        checkpoints = sorted(root.glob(f"{name}/checkpoints/[0-9]*/adapter.safetensors"), reverse=True)
        for path in (root / name / f"{name}.safetensors", root / f"{name}.safetensors", *checkpoints):
            if path.is_file():
                return path
    known = ", ".join(sorted({adapter.info.name for adapter in list_adapters(roots)})) or "none"
    places = ", ".join(str(root) for root in roots)
    raise UserError(f"no adapter named {name!r} in {places} (there: {known}); give its file, or its folder by --output")


def list_adapters(roots: Sequence[Path]) -> Iterator[SavedAdapter]:
    """Every finished adapter in the roots, by name; files that are not ours are passed over."""
    paths = {
        path.resolve()
        for root in roots
        for pattern in ("*.safetensors", "*/*.safetensors")
        for path in root.glob(pattern)
    }
    for path in sorted(paths, key=lambda path: path.name.casefold()):
        try:
            yield SavedAdapter(path, read_info(path))
        except AdapterFileError:
            continue


def parse_strength(text: str) -> tuple[str, float]:
    """ "Rex:0.8" as ("Rex", 0.8); without a strength it is 1."""
    name, colon, strength = text.rpartition(":")
    try:
        value = float(strength) if colon else 1.0
    except ValueError:
        return text, 1.0
    if not math.isfinite(value):
        raise UserError(f"the strength in {text!r} must be a number like 0.8")
    return (name, value) if colon else (text, value)


def put_on(pipe: DiffusionPipeline, path: Path) -> AdapterInfo:
    """Load an adapter under its own name, or "name 2" where another of that name is on the pipeline already."""
    name = read_info(path).name
    taken, number, free = pipeline.loaded(pipe), 2, name
    while free in taken:
        free, number = f"{name} {number}", number + 1
    return pipeline.load(pipe, path, free)
