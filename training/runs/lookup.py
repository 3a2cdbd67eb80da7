"""Find a run by its name, or by the adapter that it wrote."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from hra_diffusion import library
from hra_diffusion.comparison.axes import BASE_CHECKPOINT, LAST_CHECKPOINT
from hra_diffusion.errors import UserError
from hra_diffusion.generation.png import read_image
from hra_diffusion.names import validated_name
from training import config as configs
from training.data.concepts import concept_numbers
from training.data.dataset import load_dataset
from training.runs.run_folder import Run


def find(output: Path, name: str) -> Run | None:
    """Return the run called ``name`` in an output folder, or None."""
    return _existing(output / validated_name(name))


def run_of(adapter: Path) -> Run | None:
    """Return the run that wrote an adapter or checkpoint, or None if the file is not in its folder."""
    return _existing(adapter.parents[2] if _is_checkpoint(adapter) else adapter.parent)


def checkpoint_file(value: str, adapter: Path | None, find: Callable[[str], Path]) -> Path | None:
    """Return the file that a value of the axis "checkpoint" of a grid names, or None for the base model.

    Args:
        value: the step of a checkpoint, "last", "base", or a name for ``find``.
        adapter: the adapter that "last" means, and to whose run the checkpoints belong.
        find: returns the file of another adapter.

    Raises UserError if there is no such file.
    """
    if value == BASE_CHECKPOINT:
        return None
    if value != LAST_CHECKPOINT and not value.isdecimal():
        return find(value)
    if adapter is None:
        raise UserError(f"the checkpoint {value} needs an adapter")
    return adapter if value == LAST_CHECKPOINT else _checkpoint(adapter, int(value))


def _checkpoint(adapter: Path, step: int) -> Path:
    run = run_of(adapter)
    steps = [int(folder.name) for folder in run.checkpoints()] if run else []
    if run is None or step not in steps:
        known = f"it has those of the steps {', '.join(map(str, steps))}" if steps else "no run belongs to it"
        raise UserError(f"{adapter.name} has no checkpoint of step {step}; {known}")
    return run.checkpoint_folder(step) / "adapter.safetensors"


def samples_of(adapter: Path) -> list[Path]:
    """Return the last sample images of the run that wrote an adapter; for a checkpoint, up to its step."""
    run = run_of(adapter)
    last = int(adapter.parent.name) if _is_checkpoint(adapter) else math.inf
    rounds = {step: files for step, files in run.samples().items() if step <= last} if run else {}
    return rounds[max(rounds)] if rounds else []


def photos_of(adapter: Path, size: int) -> list[Image.Image]:
    """Return the cropped photos of an adapter's first subject, or an empty list if there are none.

    They are the small copies in the run's folder or, without these, the photos themselves at ``size`` pixels.
    """
    run = run_of(adapter)
    if run is None:
        return []
    files = sorted((run.folder / "photos").glob("[!.]*.png"))
    if len(records := run.photo_records or []) == len(files):
        files = [file for file, record in zip(files, records, strict=True) if record.concept == 0]
    if copies := [image for file in files if (image := read_image(file))]:
        return copies
    with contextlib.suppress(UserError):
        config = run.config
        dataset = load_dataset(config.photos, size, config.crop, config.boxes, "off", concept_numbers(config))
        return [photo.image for photo in dataset.photos if photo.concept == 0]
    return []


def rename(adapter: Path, name: str) -> Path:
    """Rename an adapter and its run, which can then be resumed under the new name. Returns the new path.

    Raises UserError if the name is invalid or in use.
    """
    adapter = library.rename(adapter, name)
    run = _existing(adapter.parent)
    if run and run.name == name:
        configs.write(run.config.model_copy(update={"name": name}), run.folder / "config.yaml")
    return adapter


def _existing(folder: Path) -> Run | None:
    return Run(folder) if (folder / "config.yaml").is_file() else None


def _is_checkpoint(adapter: Path) -> bool:
    return adapter.name == "adapter.safetensors" and adapter.parent.parent.name == "checkpoints"
