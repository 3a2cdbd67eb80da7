"""Inputs of a run, copied into its folder: the machines of a cluster see no other files."""

import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from pydantic import RootModel

from hra_diffusion import records
from hra_diffusion.files import atomic_path, make_folder, write_text
from training import config as configs
from training.config import TrainConfig
from training.data.caption_files import existing_captions
from training.data.photo_files import mask_path, resolve, search
from training.runs.run_folder import Run

FOLDER = "inputs"
ORIGINALS = ".originals.json"
"""File in a run's folder with the paths of the photos that were copied. It is not mirrored."""


def gather(run: Run) -> TrainConfig:
    """Copy the photos of a run, with captions and masks, and the adapter that it starts from into its folder.

    Each photo gets a folder of its own, in the order of the originals. The run's configuration is rewritten to name the
    copies, and returned. Copies are found after the run's folder was moved. Raises PhotoError for photos that are
    missing.
    """
    config, folder = run.config, (run.folder / FOLDER).resolve()
    here = partial(_current, folder)
    photos = search(tuple(map(here, config.photos))).photos
    if all(path.is_relative_to(folder) for path in config.photos):
        return config
    others = [path for path in config.photos if not here(path).is_relative_to(folder)]
    write_text(run.folder / ORIGINALS, RootModel[list[Path]]([*originals(run.folder), *others]).model_dump_json())
    boxes = {resolve(here(path)): box for path, box in config.boxes.items()}
    copies, init = {}, config.init_adapter and here(config.init_adapter)
    with atomic_path(folder) as unfinished:
        for number, path in enumerate(sorted(photos)):
            place = make_folder(unfinished / f"{number:02d}")
            copies[path] = folder / place.name / photos[path].name
            for file in (photos[path], *existing_captions(photos[path]), mask_path(photos[path])):
                if file.is_file():
                    shutil.copyfile(file, place / file.name)
        if init:
            shutil.copyfile(init, unfinished / init.name)
        changes = {
            "photos": _copied(map(here, config.photos), copies),
            "boxes": {copies[path]: box for path, box in boxes.items() if path in copies},
            "concepts": tuple(
                concept.model_copy(update={"photos": _copied(map(here, concept.photos), copies)})
                for concept in config.concepts
            ),
            "init_adapter": folder / init.name if init else None,
        }
    config = config.model_copy(update=changes)
    configs.write(config, run.folder / "config.yaml")
    return config


def originals(folder: Path) -> list[Path]:
    """Return the paths of the photos that were copied into a run's folder."""
    return records.read(folder / ORIGINALS, list[Path], [])


def _current(folder: Path, path: Path) -> Path:
    """Return where a copy is that was made into ``folder`` before it was moved; another path as it is."""
    copies = (folder / path.relative_to(parent) for parent in path.parents if parent.name == FOLDER)
    return next((copy for copy in copies if copy.exists()), path)


def _copied(photos: Iterable[Path], copies: dict[Path, Path]) -> tuple[Path, ...]:
    return tuple(copies[path] for path in sorted(search(tuple(photos)).photos))
