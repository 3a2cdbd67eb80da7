"""Subjects in prompts."""

import pytest
from conftest import distance, pipe_with_two_adapters

from hra_diffusion.adapters import attachment
from hra_diffusion.comparison.compare import Variant, compare
from hra_diffusion.errors import UserError
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate, generate_batch
from hra_diffusion.generation.subjects import with_subject

FEW = Settings(steps=3)


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


@pytest.fixture
def pipe():
    """A pipeline on which the subject of adapter "a" is known, that of "b" is not."""
    pipe = pipe_with_two_adapters()
    attachment.remember(pipe.unet, "a", {"trigger": "sks", "class_noun": "dog"})
    return pipe


def test_the_placeholder_stands_for_the_subject_of_the_first_adapter(pipe):
    image = generate(pipe, "a {subject} in the snow", {"a": 1.0, "b": 0.5}, settings=FEW)[0]
    assert image.info["hra_diffusion"]["prompt"] == "a sks dog in the snow"
    requests = [Request(prompt, 0, (("a", 1.0), ("b", 0.5))) for prompt in ("a {subject} in the snow", "a dog")]
    assert distance(image, generate_batch(pipe, requests, FEW)[0]) < 0.5


@pytest.mark.parametrize(
    ("adapters", "message"),
    [({}, "needs an adapter"), ({"b": 1.0, "a": 1.0}, "needs the subject of 'b', which has neither trigger nor")],
)
def test_an_unknown_subject_is_an_error(pipe, adapters, message):
    with pytest.raises(UserError, match=f"a {{subject}}.*{message}"):
        generate(pipe, "a {subject}", adapters, settings=FEW)


def test_a_comparison_knows_the_subjects_of_its_adapters(pipe):
    variants = [Variant("base", {}, "dog"), Variant("A", {"a": 1.0}), Variant("B", {"b": 1.0}, "toy")]
    result = compare(pipe, variants, ["a {subject}"], [1], FEW)
    assert [sample.request.prompt for sample in result.samples] == ["a dog", "a sks dog", "a toy"]
    variants = [Variant("base", {}), Variant("A", {"a": 1.0}, class_noun="dog"), Variant("B", {"b": 1.0})]
    result = compare(pipe, variants, ["a {subject}"], [1], FEW)
    assert [sample.request.prompt for sample in result.samples] == ["a dog", "a sks dog", "a dog"]
    with pytest.raises(UserError, match="needs the subject of 'b'"):
        compare(pipe, [Variant("B", {"b": 1.0})], ["a {subject}"], [1], FEW)
