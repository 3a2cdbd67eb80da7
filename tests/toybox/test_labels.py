"""Tests of objects and of the sampling of labels."""

import numpy as np
import pytest

from toybox.attributes import ATTRIBUTES
from toybox.labels import FIXED_HUE, Label, parse_second_object, sample_labels
from toybox.objects import HELD_OUT, OBJECTS, find_object
from toybox.scenes import SCENES
from toybox.subjects import SUBJECTS


def names(label: Label) -> list[str]:
    """Return the names of a label's objects."""
    return [label.object, *(second.name for second, _ in parse_second_object(label.second_object))]


def test_names_and_sprites_are_unique() -> None:
    """The class nouns of held-out objects are known to the base model."""
    everything = (*OBJECTS, *HELD_OUT)
    assert len({entry.name for entry in everything}) == len({entry.code for entry in everything}) == len(everything)
    assert {entry.noun for entry in HELD_OUT} <= {entry.noun for entry in OBJECTS}


def test_held_out_objects_are_excluded_from_training() -> None:
    """By name and by sprite; all other objects, scenes and attributes occur."""
    held_out = {entry.name for entry in HELD_OUT} | {entry.code for entry in HELD_OUT}
    labels = sample_labels(np.random.default_rng(0), 20000)
    objects = {find_object(name) for label in labels for name in names(label)}
    assert not held_out & {key for entry in objects for key in (entry.name, entry.code)}
    assert objects == set(OBJECTS)
    assert {label.scene for label in labels} == set(SCENES)
    assert {label.attribute for label in labels} == {"", *ATTRIBUTES}


def test_surface_attributes_are_more_frequent_than_worn_ones() -> None:
    """They are fewer, but need more training."""
    labels = sample_labels(np.random.default_rng(0), 5000)
    surface = [ATTRIBUTES[label.attribute].precedes_noun for label in labels if label.attribute]
    assert len(surface) / 5000 == pytest.approx(0.7, abs=0.03)
    assert np.mean(surface) == pytest.approx(0.6, abs=0.03)


def test_all_objects_but_fixed_ones_get_random_hues() -> None:
    """Subjects in other colours are among the fixed ones."""
    labels = sample_labels(np.random.default_rng(0), 20000)
    assert {label.object for label in labels if label.hue_shift} == {entry.name for entry in OBJECTS} - FIXED_HUE
    assert {subject.object for subject in SUBJECTS.values() if subject.hue_shift} <= FIXED_HUE


def test_unknown_object_lists_the_valid_ones() -> None:
    """The error names all objects."""
    with pytest.raises(ValueError, match=r"'octopuss'.*octopus"):
        find_object("octopuss")
