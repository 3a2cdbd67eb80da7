"""The photo that a run holds out for its validation loss."""

from collections.abc import Sequence

from training import objective
from training.data.photo import Photo, PhotoError

MIN_PHOTOS = 4
"""Fewest photos of which one is held out."""


def held_out_photo(photos: Sequence[Photo], validation: str, seed: int) -> Photo | None:
    """Return the photo to hold out, or None.

    Args:
        photos: all photos of the run.
        validation: "none", the file name of a photo, or "auto" for one that depends on the seed.
        seed: the seed of the run.

    Raises PhotoError if there are fewer than ``MIN_PHOTOS`` photos, or none of this name.
    """
    if validation == "none":
        return None
    if len(photos) < MIN_PHOTOS:
        raise PhotoError(
            f"--validation holds out a photo, which needs at least {MIN_PHOTOS} of them, not {len(photos)}; "
            "add photos, or use --validation none"
        )
    if validation == "auto":
        return photos[objective.stable_seed(seed, "validation photo") % len(photos)]
    named = [photo for photo in photos if photo.path.name == validation or str(photo.path) == validation]
    if len(named) == 1:
        return named[0]
    problem = "is the name of several photos" if named else "is not among the photos"
    known = ", ".join(sorted({photo.path.name for photo in photos}))
    raise PhotoError(f"--validation: {validation} {problem}; use auto, none or one of {known}")
