"""Find a resumed run's photos by the hashes of their files."""

import contextlib
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from training.config import TrainConfig
from training.data.dataset import Dataset, load_dataset
from training.data.photo_files import SUFFIXES, find_photos
from training.runs.events import Event, Notice
from training.runs.run_folder import Run, RunError

MOST_SEARCHED = 1000
"""Files that are read in search of moved photos."""


def find(run: Run, config: TrainConfig, emit: Callable[[Event], None]) -> list[Path]:
    """The photos that the run began with, in its order, where they are now: found by the hashes kept in its folder.

    They are looked for in ``config.photos``, then near those places and in the folder of the page's photos.
    Raises RunError if a photo is not found.
    """
    if not (kept := run.photos):
        emit(Notice(f"{run.folder / 'photos.json'} is damaged: the photos are taken as they are now, unchecked"))
        return find_photos(config.photos)
    hashes, given = [photo["sha256"] for photo in kept], list(_files(config.photos))
    found = _match(hashes, given)
    if None in found:
        near = _files(_folders_near([*config.photos, run.folder.parent / "photos" / run.name]))
        found = _match(hashes, [*given, *itertools.islice(near, MOST_SEARCHED)])
    if missing := found.count(None):
        places = ", ".join(map(str, config.photos))
        raise RunError(
            f"{missing} of the {len(found)} photos that {run.folder} began with are neither in {places} nor near it; "
            "say where they are by --photos, or start a new run under another --name"
        )
    photos = [path for path in found if path is not None]
    if moved := sorted({str(path.parent) for path in photos if path not in given}):
        emit(Notice(f"the photos have moved; found by their content in {', '.join(moved)}"))
    if others := [path.name for path in given if path not in photos]:
        emit(Notice(f"not part of this run, and left out: {', '.join(others)}; a new run would learn from them too"))
    return photos


def load_resumed_dataset(photos: list[Path], run: Run, config: TrainConfig, resolution: int) -> Dataset:
    """The photos that ``find`` returned, with the crops and frames that the run began with.

    A photo without a caption file gets its kept caption; ``Run.begin`` checks that no other caption has changed.
    """
    if not (kept := run.photos):
        return load_dataset(photos, resolution, config.crop, config.boxes)
    album = load_dataset(photos, resolution, config.crop, _boxes(photos, run))
    taken = {photo.path: photo for photo in album.photos}
    same = (
        replace(
            taken[path],
            caption=taken[path].caption or entry["caption"],
            frame=tuple(entry.get("frame", taken[path].frame)),
        )
        for path, entry in zip(photos, kept, strict=True)
    )
    return replace(album, photos=tuple(same))


def with_present_paths(config: TrainConfig, photos: list[Path], run: Run) -> TrainConfig:
    """The configuration with the photos' present places, where they are others than it says."""
    given = [*_files(config.photos)]
    if config.photos == run.config.photos and all(path in given for path in photos):
        return config
    return config.model_copy(update={"photos": tuple(photos), "boxes": _boxes(photos, run)})


def _boxes(photos: list[Path], run: Run) -> dict[Path, tuple[int, int, int, int]]:
    return {path: tuple(entry["crop"]) for path, entry in zip(photos, run.photos or (), strict=True)}


def _match(hashes: Iterable[str], files: Iterable[Path]) -> list[Path | None]:
    """A file of each hash, no file twice; None where there is none."""
    places: defaultdict[str, list[Path]] = defaultdict(list)
    for file in dict.fromkeys(files):
        with contextlib.suppress(OSError), file.open("rb") as stream:
            places[hashlib.file_digest(stream, "sha256").hexdigest()].append(file)
    return [places[wanted].pop(0) if places[wanted] else None for wanted in hashes]


def _files(places: Iterable[Path]) -> Iterator[Path]:
    """The files among the places, and those in their folders that have a photo's suffix; resolved."""
    for place in places:
        inside: list[Path] = []
        with contextlib.suppress(OSError):  # a folder that may not be read
            inside = sorted(place.iterdir()) if place.is_dir() else [place]
        for file in inside:
            if file.is_file() and (file == place or file.suffix.lower() in SUFFIXES):
                yield file.resolve()


def _folders_near(places: Iterable[Path]) -> Iterator[Path]:
    """The nearest folder above each place that is still there, and the folders in it."""
    above = (next((folder for folder in place.absolute().parents if folder.is_dir()), None) for place in places)
    for folder in dict.fromkeys(above):
        if folder is not None:
            yield folder
            yield from sorted(folder.glob("[!.]*/"))
