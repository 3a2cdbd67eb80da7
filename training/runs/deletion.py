"""Deleting runs and adapters for good, with the photos that only they use."""

import contextlib
from pathlib import Path

from hra_diffusion import trash
from hra_diffusion.errors import UserError
from hra_diffusion.files import remove, sha256
from training.cluster import inputs
from training.cluster.storage import delete_copies
from training.runs.run_folder import Run


def photo_folders(run: Path, output: Path) -> set[Path]:
    """Return the folders in ``{output}/photos`` from which the run in a folder reads its photos, or copied them."""
    photos = inputs.originals(run)
    with contextlib.suppress(UserError):  # an adapter without a run, or a damaged one
        photos = [*photos, *Run(run).config.photos]
    folders = {output / "photos" / photo.name: photo for photo in photos if photo.parent.name == "photos"}
    moved = {here for here, photo in folders.items() if not photo.exists()}  # with the output folder
    return {here for here, photo in folders.items() if here.is_dir() and (here in moved or here.samefile(photo))}


def delete_for_good(key: str, output: Path) -> set[str]:
    """Delete an item of the trash, and its photos in ``{output}/photos`` unless another run uses them.

    So are its copies in the output folder's own storage of a cluster. Returns the SHA-256 hashes of the deleted photos.
    """
    item = output / trash.FOLDER / key
    photos = photo_folders(item, output)
    delete_copies(item, output)
    trash.delete(key, output)
    if photos:
        others = [*output.glob("*/config.yaml"), *(output / trash.FOLDER).glob("*/config.yaml")]
        photos -= {folder for file in others for folder in photo_folders(file.parent, output)}
    hashes = {sha256(file) for folder in photos for file in folder.iterdir() if file.is_file()}
    for folder in photos:
        remove(folder)
    return hashes
