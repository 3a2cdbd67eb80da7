"""Several subjects in one run: their photos, class noun and trigger each, in a YAML file.

    concepts:
      - photos: dog/
        class_noun: dog
        trigger: sks
      - photos: [teapot/1.jpg, teapot/2.jpg]
        class_noun: teapot
        trigger: qwe
        caption: a drawing of a {subject}
        repeats: 2

The concepts of OneTrainer (Nerogar/OneTrainer 23df383) and the subsets of kohya's trainer (kohya-ss/sd-scripts 48d368f,
``num_repeats`` and ``class_tokens``) are configured alike.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hra_diffusion.errors import shown
from hra_diffusion.files import path_of
from training import config as configs
from training.config import ConfigError, TrainConfig
from training.data.photo import PhotoError
from training.data.photo_files import search


def read_concepts(path: Path) -> list[dict[str, Any]]:
    """Return the concepts in a YAML file as plain values, with absolute paths. Paths in it are relative to its folder.

    Raises ConfigError for a file that is unreadable or holds something else.
    """
    values = configs.read_values(path)
    if others := sorted(values.keys() - {"concepts"}):
        raise ConfigError(f"{path}: there is no option {shown(others[0])}; expected a list 'concepts:'")
    try:
        return absolute_concepts(values.get("concepts", []), path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def absolute_concepts(concepts: Any, folder: Path) -> list[dict[str, Any]]:
    """Return concepts as plain values, with the paths of their photos relative to ``folder`` made absolute."""
    if not concepts or not all(isinstance(concept, dict) for concept in concepts):
        raise ConfigError("concepts must be a list with lines 'photos: …', 'class_noun: …' and 'trigger: …' for each")
    return [concept | _absolute_photos(concept, folder) for concept in concepts]


def _absolute_photos(concept: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    given = concept.get("photos", [])
    photos = [given] if isinstance(given, str) else given
    if not photos:
        raise ConfigError(f"the concept {shown(concept.get('trigger'))} has no photos; add a line 'photos: …' to it")
    if not isinstance(photos, list) or not all(isinstance(photo, str) for photo in photos):
        raise ConfigError(f"photos of a concept must be paths, not {shown(given)}")
    return {"photos": [str((folder / path_of(photo)).resolve()) for photo in photos]}


def concept_numbers(config: TrainConfig) -> dict[Path, int]:
    """Return the number of the concept of each photo by its resolved path; {} for a single subject.

    Raises PhotoError for a photo of two concepts, and as ``photo_files.search`` does, such as for a folder without
    photos.
    """
    numbers: dict[Path, int] = {}
    for number, concept in enumerate(config.concepts):
        photos = search(concept.photos).photos
        if both := sorted(photos.keys() & numbers.keys()):
            other = config.concepts[numbers[both[0]]].trigger
            raise PhotoError(f"{both[0]}: is among the photos of {other!r} and of {concept.trigger!r}. Remove it once.")
        numbers |= dict.fromkeys(photos, number)
    return numbers


def epoch(concepts: Sequence[int], config: TrainConfig) -> list[int]:
    """Return the number of the photo of each sample of an epoch: each photo as often as its concept repeats it.

    ``concepts``: the number of each photo's concept.
    """
    return [photo for photo, number in enumerate(concepts) for _ in range(config.subjects[number].repeats)]
