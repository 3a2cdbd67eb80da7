"""Deleting runs and adapters for good, with the photos that only they use."""

from pathlib import Path

from hra_diffusion import trash
from hra_diffusion.errors import UserError
from hra_diffusion.files import remove, sha256
from training.runs.run_folder import Run


def photo_folders(run: Path, output: Path) -> set[Path]:
    """Return the folders in ``{output}/photos`` from which the run in a folder reads its photos."""
    try:
        photos = Run(run).config.photos
    except UserError:  # an adapter without a run, or a damaged one
        return set()
    folders = {output / "photos" / photo.name: photo for photo in photos if photo.parent.name == "photos"}
    moved = {here for here, photo in folders.items() if not photo.exists()}  # with the output folder
    return {here for here, photo in folders.items() if here.is_dir() and (here in moved or here.samefile(photo))}


def delete_for_good(key: str, output: Path) -> set[str]:
    """Delete an item of the trash, and its photos in ``{output}/photos`` unless another run uses them.

    Returns the SHA-256 hashes of the deleted photos.
    """
    photos = photo_folders(output / trash.FOLDER / key, output)
    trash.delete(key, output)
    if photos:
        others = [*output.glob("*/config.yaml"), *(output / trash.FOLDER).glob("*/config.yaml")]
        photos -= {folder for file in others for folder in photo_folders(file.parent, output)}
    hashes = {sha256(file) for folder in photos for file in folder.iterdir() if file.is_file()}
    for folder in photos:
        remove(folder)
    return hashes
