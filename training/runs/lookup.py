"""Find a run by its name, or by the adapter that it wrote."""

import contextlib
import math
from pathlib import Path

from PIL import Image

from hra_diffusion import library
from hra_diffusion.errors import UserError
from hra_diffusion.generation.png import read_image
from hra_diffusion.names import validated_name
from training import config as configs
from training.data.dataset import load_dataset
from training.runs.run_folder import Run


def find(output: Path, name: str) -> Run | None:
    """Return the run called ``name`` in an output folder, or None."""
    return _existing(output / validated_name(name))


def run_of(adapter: Path) -> Run | None:
    """Return the run that wrote an adapter or checkpoint, or None if the file is not in its folder."""
    return _existing(adapter.parents[2] if _is_checkpoint(adapter) else adapter.parent)


def samples_of(adapter: Path) -> list[Path]:
    """Return the last sample images of the run that wrote an adapter; for a checkpoint, up to its step."""
    run = run_of(adapter)
    last = int(adapter.parent.name) if _is_checkpoint(adapter) else math.inf
    rounds = {step: files for step, files in run.samples().items() if step <= last} if run else {}
    return rounds[max(rounds)] if rounds else []


def photos_of(adapter: Path, size: int) -> list[Image.Image]:
    """Return the cropped photos that an adapter was trained on, or an empty list if there are none.

    They are the small copies in the run's folder or, without these, the photos themselves at ``size`` pixels.
    """
    run = run_of(adapter)
    if run is None:
        return []
    files = sorted((run.folder / "photos").glob("[!.]*.png"))
    if copies := [image for file in files if (image := read_image(file))]:
        return copies
    with contextlib.suppress(UserError):
        config = run.config
        photos = load_dataset(config.photos, size, config.crop, config.boxes, mask="off").photos
        return [photo.image for photo in photos]
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
