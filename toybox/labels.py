"""Labels: what an image of the toy world shows, and how labels are sampled for training."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np

from toybox.attributes import ATTRIBUTES, COLOUR_NAMES
from toybox.drawing import Rng
from toybox.objects import OBJECTS, WorldObject, find_object
from toybox.scenes import SCENES

RANDOM_HUE_SHARE = 0.12
"""Share of images whose object has a random hue."""
FIXED_HUE = frozenset({"parrot"})
"""Objects that never have a random hue, because a benchmark subject is one of them in another hue."""
ATTRIBUTE_SHARE = 0.7
SURFACE_SHARE = 0.6
"""Share of attributes that change the whole surface (a colour, shiny, wet, cube shaped). These need more training than
worn ones, because they look different on every object."""
SECOND_OBJECT_SHARE = 0.05
SECOND_OBJECT_COLOUR_SHARE = 0.5


@dataclass(frozen=True)
class Label:
    """Content of an image: an object's name, the phrases of a scene and optionally an attribute, and a second object.

    ``second_object``: an object's name with or without a colour ("apple", "red apple"). ``hue_shift``: rotation of the
    first object's hue, as a fraction of the colour circle. If it is not 0, captions use the object's class noun, so
    that a class noun covers more than the named objects and the base model generalises to new subjects.
    """

    object: str
    scene: str
    attribute: str = ""
    second_object: str = ""
    hue_shift: float = 0.0


def parse_second_object(text: str) -> list[tuple[WorldObject, str]]:
    """Parse the second object of a label and its colour ("" for its own); an empty list if there is none."""
    if not text:
        return []
    if text in {entry.name for entry in OBJECTS}:
        return [(find_object(text), "")]
    colour, _, name = text.partition(" ")
    return [(find_object(name), colour)]


def sample_pairs(rng: Rng, phrases: Iterable[str], count: int) -> list[tuple[str, str]]:
    """Sample ``count`` different pairs of an object's name and a phrase (of a scene or attribute)."""
    pairs = list(product((entry.name for entry in OBJECTS), phrases))
    return [pairs[index] for index in rng.choice(len(pairs), count, replace=False).tolist()]


UNSEEN = frozenset(sample_pairs(np.random.default_rng(20_27), SCENES, 200))
"""Pairs of object and scene that are excluded from training, to score the base model on unseen combinations."""


def is_unseen(label: Label) -> bool:
    """Return whether a label contains an UNSEEN pair of object and scene."""
    names = [label.object, *(second.name for second, _ in parse_second_object(label.second_object))]
    return any((name, label.scene) in UNSEEN for name in names)


def sample_labels(rng: Rng, count: int) -> list[Label]:
    """Sample ``count`` training labels: objects uniformly, scenes by weight, nothing held out."""
    return [sample_label(rng) for _ in range(count)]


def sample_label(rng: Rng) -> Label:
    """Sample an object in a scene; some have a random hue, some an attribute, some a second object."""
    phrases, weights = list(SCENES), np.array([scene.weight for scene in SCENES.values()])
    scene = phrases[rng.choice(len(phrases), p=weights / weights.sum())]
    name = OBJECTS[rng.integers(len(OBJECTS))].name
    hue_shift = rng.uniform() if rng.random() < RANDOM_HUE_SHARE and name not in FIXED_HUE else 0.0
    kind = rng.random()
    if kind < ATTRIBUTE_SHARE:
        return Label(name, scene, attribute=sample_attribute(rng), hue_shift=hue_shift)
    if kind < ATTRIBUTE_SHARE + SECOND_OBJECT_SHARE:
        return Label(name, scene, second_object=sample_second_object(rng), hue_shift=hue_shift)
    return Label(name, scene, hue_shift=hue_shift)


def sample_attribute(rng: Rng) -> str:
    """Sample an attribute: of the surface with probability SURFACE_SHARE, otherwise worn."""
    surface = rng.random() < SURFACE_SHARE
    phrases = [phrase for phrase, attribute in ATTRIBUTES.items() if attribute.precedes_noun == surface]
    return phrases[rng.integers(len(phrases))]


def sample_second_object(rng: Rng) -> str:
    """Sample the name of a second object, with a colour in half of the cases."""
    name = OBJECTS[rng.integers(len(OBJECTS))].name
    if rng.random() < SECOND_OBJECT_COLOUR_SHARE:
        return f"{COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))]} {name}"
    return name
