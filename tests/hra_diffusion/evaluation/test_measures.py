"""Measures on embeddings whose similarities are known."""

import math

import pytest
import torch
from conftest import random_images
from PIL import Image

from hra_diffusion.evaluation import measures
from hra_diffusion.generation.subjects import without_trigger


def at(*degrees):
    """Unit vectors in the plane, so that the similarity of two is the cosine of the angle between them."""
    radians = [math.radians(value) for value in degrees]
    return torch.tensor([[math.cos(value), math.sin(value)] for value in radians])


def cosine(degrees):
    return pytest.approx(math.cos(math.radians(degrees)), abs=1e-6)


def test_fidelity_is_the_mean_similarity_to_the_photos_and_the_similarity_to_the_own_prompt():
    assert measures.subject_fidelity(at(0), at(0, 60)).tolist() == [pytest.approx(0.75)]
    assert measures.prompt_fidelity(at(0, 10), at(60, 10)).tolist() == [cosine(60), cosine(0)]


def test_drift_is_the_distance_from_the_base_model():
    assert measures.drift(at(0, 90), at(0, 0)).tolist() == pytest.approx([0, 1], abs=1e-6)


def test_a_copied_photo_is_flagged_and_named():
    found = measures.nearest_photo(at(1, 40), at(90, 0))
    assert found.photo.tolist() == [1, 1] and found.copied.tolist() == [True, False]
    assert found.similarity.tolist() == [cosine(1), cosine(40)]


def test_diversity_is_the_mean_distance_of_two_pictures():
    embeddings = at(0, 60, 120)
    expected = (0.5 + 0.5 + 1.5) / 3
    assert measures.diversity(measures.embedding_distances(embeddings)) == pytest.approx(expected, abs=1e-6)
    varieties = measures.variety(embeddings, ["same"] * 3)
    assert sum(varieties) / 3 == pytest.approx(expected, abs=1e-6)
    assert measures.diversity(torch.zeros(1, 1)) is None


def test_leakage_is_the_similarity_to_the_most_similar_background():
    assert measures.leakage(at(10), at(10, 90)).tolist() == [cosine(0)]


def test_the_background_has_no_trace_of_the_subjects_colours():
    scene, mask = random_images(1)[0], Image.new("L", (16, 20))
    mask.paste(255, (4, 5, 12, 15))
    red, blue = scene.copy(), scene.copy()
    for image, colour in ((red, "red"), (blue, "blue")):
        image.paste(colour, (8, 10, 24, 30))
    hard = mask.resize(scene.size, Image.Resampling.NEAREST)
    assert measures.background(red, hard) == measures.background(blue, hard)
    assert measures.background(red, hard).getpixel((0, 0)) == scene.getpixel((0, 0))
    assert measures.background(red, mask).size == scene.size
    assert measures.background(red, Image.new("L", (1, 1), 255)).getcolors() == [(32 * 40, (0, 0, 0))]


@pytest.mark.parametrize(
    ("prompt", "trigger", "expected"),
    [
        ("a sks dog in the snow", "sks", "a dog in the snow"),
        ("A red [V] dog", "[V]", "A red dog"),
        ("a photo of SKS", "sks", "a photo of"),
        ("a skss dog", "sks", "a skss dog"),
    ],
)
def test_prompts_are_scored_without_the_trigger(prompt, trigger, expected):
    assert without_trigger(prompt, trigger) == expected
