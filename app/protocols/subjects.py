"""Subjects of a protocol: photos to train on, photos to compare with, and prompts."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hra_diffusion.errors import UserError
from hra_diffusion.models.sources import ASSETS
from training.data.photo_files import find_photos

TOYBOX_FOLDER = ASSETS / "toybox-benchmark"
PROMPTS_FILE = "prompts_and_classes.txt"
LIVE_CLASSES = ("cat", "dog")
"""Classes of the nine live subjects of the DreamBooth benchmark."""
OWN_PROMPTS = (
    "in the jungle", "in the snow", "on the beach", "on a cobblestone street", "on top of pink fabric",
    "on top of a wooden floor", "with a city in the background", "with a mountain in the background",
    "with a blue house in the background", "on top of a purple rug in a forest",
)  # fmt: skip
OWN_ATTRIBUTES = ("red", "wet")


@dataclass(frozen=True)
class Prompt:
    """A prompt with ``{subject}``.

    Attributes:
        scene, attribute: what toybox's judge must see, "" for anything.
        released: what HRA's released code takes for the text, "" for the same.
    """

    text: str
    scene: str = ""
    attribute: str = ""
    released: str = ""


@dataclass(frozen=True)
class Subject:
    """A subject. ``references`` are the photos that pictures are compared with."""

    name: str
    class_noun: str
    photos: tuple[Path, ...]
    references: tuple[Path, ...]
    prompts: tuple[Prompt, ...]


def toybox_subjects() -> list[Subject]:
    """Return toybox's ten held-out subjects, with the prompts of the DreamBooth benchmark."""
    found = []
    for values in json.loads((TOYBOX_FOLDER / "subjects.json").read_text(encoding="utf-8")):
        photos = tuple(sorted((TOYBOX_FOLDER / values["name"]).glob("*.png")))
        prompts = tuple(Prompt(**prompt) for prompt in values["prompts"])
        found.append(Subject(values["name"], values["class_noun"], photos, photos, prompts))
    return found


def dreambooth_subjects(folder: Path) -> list[Subject]:
    """Return the subjects in a folder of the DreamBooth dataset (github.com/google/dreambooth).

    Live subjects and objects have different prompts, read from ``prompts_and_classes.txt``. HRA's released code scores
    all of them against those of live subjects (``get_prompt`` in generation/subject/evaluate.py of DaShenZi721/HRA
    8bfc9b0). Raises UserError if the file is missing or unreadable, or if no subject is there.
    """
    file = folder / PROMPTS_FILE
    if not file.is_file():
        raise UserError(f"{folder} has no {PROMPTS_FILE}; give the folder of the DreamBooth dataset as --data")
    text = file.read_text(encoding="utf-8")
    classes = dict(re.findall(r"^(\w+),([\w ]+)$", text, re.MULTILINE))
    text = text.replace("{0} {1}", "{subject}")
    lists = [re.findall(r"^'(.+?)'\.format", part, re.MULTILINE) for part in text.split("Live Subject Prompts")]
    if len(lists) != 2 or not all(lists) or not classes:
        raise UserError(f"{file} does not list classes, prompts of objects and prompts of live subjects")
    prompts = [tuple(Prompt(own, released=live) for own, live in zip(lines, lists[1], strict=False)) for lines in lists]
    subjects = []
    for name, noun in classes.items():
        if (folder / name).is_dir():
            photos = tuple(find_photos([folder / name]))
            subjects.append(Subject(name, noun, photos, photos, prompts[noun in LIVE_CLASSES]))
    if not subjects:
        raise UserError(f"{folder} has no folder of a subject that {PROMPTS_FILE} names, such as {next(iter(classes))}")
    return subjects


def own_subject(photos: Sequence[Path], class_noun: str) -> Subject:
    """Return a subject from a person's photos, the last of which is held out for comparison, with 12 prompts.

    Raises UserError if there are fewer than three photos.
    """
    found = find_photos(photos)
    if len(found) < 3:
        raise UserError(f"the benchmark holds out a photo and needs at least 3 of them, not {len(found)}")
    prompts = [f"a photo of a {{subject}} {scene}" for scene in OWN_PROMPTS]
    prompts += [f"a photo of a {attribute} {{subject}}" for attribute in OWN_ATTRIBUTES]
    return Subject("mine", class_noun, tuple(found[:-1]), tuple(found[-1:]), tuple(map(Prompt, prompts)))
