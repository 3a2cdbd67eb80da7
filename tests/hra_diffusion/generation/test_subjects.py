"""Subjects in prompts."""

import pytest

from hra_diffusion.generation.subjects import with_subject


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a {subject} in the snow", "a sks dog in the snow"),
        ("a dog in the snow", "a sks dog in the snow"),
        ("a SKS dog and a dog", "a SKS dog and a dog"),
        ("in the snow", "sks dog, in the snow"),
        ("a hotdog", "sks dog, a hotdog"),
        ("", "sks dog"),
    ],
)
def test_the_subject_is_inserted(prompt, expected):
    assert with_subject(prompt, "sks dog", "dog") == expected


def test_a_trigger_in_brackets_is_found():
    assert with_subject("a [V] dog in the snow", "[V] dog", "dog") == "a [V] dog in the snow"
