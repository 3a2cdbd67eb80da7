"""Inputs of a run, copied into its folder: the machines of a cluster see no other files."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from hra_diffusion.files import atomic_path, make_folder
from training import config as configs
from training.config import TrainConfig
from training.data.caption_files import existing_captions
from training.data.photo_files import mask_path, resolve, search
from training.runs.run_folder import Run

FOLDER = "inputs"


def gather(run: Run) -> TrainConfig:
    """Copy the photos of a run, with captions and masks, and the adapter that it starts from into its folder.

    Each photo gets a folder of its own, in the order of the originals. The run's configuration is rewritten to name the
    copies, and returned. Raises PhotoError for photos that are missing.
    """
    config, folder = run.config, (run.folder / FOLDER).resolve()
    photos = {path: given for concept in config.subjects for path, given in search(concept.photos).photos.items()}
    if folder.is_dir() and all(path.is_relative_to(folder) for path in photos):
        return config
    boxes = {resolve(path): box for path, box in config.boxes.items()}
    copies, init = {}, config.init_adapter
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
        "photos": _copied(config.photos, copies),
        "boxes": {copies[path]: box for path, box in boxes.items() if path in copies},
        "concepts": tuple(
            concept.model_copy(update={"photos": _copied(concept.photos, copies)}) for concept in config.concepts
        ),
        "init_adapter": folder / init.name if init else None,
    }
    config = config.model_copy(update=changes)
    configs.write(config, run.folder / "config.yaml")
    return config


def _copied(photos: Sequence[Path], copies: dict[Path, Path]) -> tuple[Path, ...]:
    return tuple(copies[path] for path in sorted(search(photos).photos))
