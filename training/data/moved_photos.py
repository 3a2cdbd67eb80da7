"""Find the photos of a resumed run by the hashes of their files."""

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from hra_diffusion.files import sha256
from training.config import TrainConfig
from training.data.concepts import concept_numbers
from training.data.dataset import Dataset, load_dataset
from training.data.photo_files import SUFFIXES, find_photos, is_mask
from training.runs.events import Event, Notice
from training.runs.run_folder import Run, RunError

MAX_SEARCHED = 1000
"""Most files to hash when searching for moved photos."""


def find(run: Run, config: TrainConfig, emit: Callable[[Event], None]) -> list[Path]:
    """Return the current paths of the photos that the run started with, in the same order.

    Photos are identified by the SHA-256 stored in the run folder. They are searched for in ``config.photos``, then in
    the folders nearby and in those to which the page and a cluster copy photos. Raises RunError if one is not found.
    """
    if not (stored := run.photo_records):
        emit(Notice(f"{run.folder / 'photos.json'} is missing or damaged: the photos can't be verified"))
        return find_photos(config.photos)
    hashes, given = [photo.sha256 for photo in stored], list(_files(config.photos))
    found = _match(hashes, given)
    if None in found:
        copies = [run.folder.parent / "photos" / run.name, *run.folder.glob("inputs/*/*")]
        near = _files(_folders_near([*config.photos, *copies]))
        found = _match(hashes, [*given, *itertools.islice(near, MAX_SEARCHED)])
    if missing := found.count(None):
        places = ", ".join(map(str, config.photos))
        raise RunError(
            f"{missing} of the {len(found)} photos that {run.folder} started with were not found in or near {places}; "
            "give their folder with --photos, or start a new run with another --name"
        )
    photos = [path for path in found if path is not None]
    if moved := sorted({str(path.parent) for path in photos if path not in given}):
        emit(Notice(f"the photos have moved; found by their content in {', '.join(moved)}"))
    if others := [path.name for path in given if path not in photos]:
        emit(Notice(f"not part of this run, and ignored: {', '.join(others)}; start a new run to train on them too"))
    return photos


def load_resumed_dataset(photos: list[Path], run: Run, config: TrainConfig, resolution: int) -> Dataset:
    """Load the photos that ``find`` returned, with the crops, frames and masks that the run started with.

    A photo whose caption file is missing takes the stored caption; the run folder checks that no other has changed.
    Raises RunError if a stored mask is missing or damaged.
    """
    if not (stored := run.photo_records):
        return load_dataset(photos, resolution, config.crop, config.boxes, config.mask, concept_numbers(config))
    concepts = {path: entry.concept for path, entry in zip(photos, stored, strict=True)}
    dataset = load_dataset(photos, resolution, config.crop, _boxes(photos, run), "off", concepts)
    loaded = {photo.path: photo for photo in dataset.photos}
    restored = (
        replace(
            loaded[path],
            caption=loaded[path].caption or entry.caption,
            frame=entry.frame or loaded[path].frame,
            mask=run.stored_mask(number, entry.mask) if entry.mask else None,
        )
        for number, (path, entry) in enumerate(zip(photos, stored, strict=True))
    )
    return replace(dataset, photos=tuple(restored))


def with_current_paths(config: TrainConfig, photos: list[Path], run: Run) -> TrainConfig:
    """Return the configuration with the current paths of the photos."""
    given = [*_files(config.photos)]
    if config.photos == run.config.photos and all(path in given for path in photos):
        return config
    numbers = [entry.concept for entry in run.photo_records or ()]
    concepts = tuple(
        concept.model_copy(update={"photos": tuple(p for p, own in zip(photos, numbers, strict=True) if own == number)})
        for number, concept in enumerate(config.concepts)
    )
    return config.model_copy(update={"photos": tuple(photos), "boxes": _boxes(photos, run), "concepts": concepts})


def _boxes(photos: list[Path], run: Run) -> dict[Path, tuple[int, int, int, int]]:
    return {path: entry.crop for path, entry in zip(photos, run.photo_records or (), strict=True)}


def _match(hashes: Iterable[str], files: Iterable[Path]) -> list[Path | None]:
    """Return a file for each hash, or None if there is none. No file is returned twice."""
    matches: defaultdict[str, list[Path]] = defaultdict(list)
    for file in dict.fromkeys(files):
        with contextlib.suppress(OSError):
            matches[sha256(file)].append(file)
    return [matches[known].pop(0) if matches[known] else None for known in hashes]


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files among the paths, and the photos in the folders among them, resolved."""
    for path in paths:
        inside: list[Path] = []
        with contextlib.suppress(OSError):  # folders without read permission
            inside = sorted(path.iterdir()) if path.is_dir() else [path]
        for file in inside:
            if file.is_file() and (file == path or (file.suffix.lower() in SUFFIXES and not is_mask(file))):
                yield file.resolve()


def _folders_near(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the nearest existing parent folder of each path, and the folders in it."""
    above = (next((folder for folder in path.absolute().parents if folder.is_dir()), None) for path in paths)
    for folder in dict.fromkeys(above):
        if folder is not None:
            yield folder
            yield from sorted(folder.glob("[!.]*/"))
