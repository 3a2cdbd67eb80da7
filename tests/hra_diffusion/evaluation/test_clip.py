"""CLIP scores, compared with transformers' own forward pass."""

import shutil

import pytest
import torch
from conftest import random_images, tiny_clip

from hra_diffusion.errors import UserError
from hra_diffusion.evaluation.clip import Clip, default_source, score_images


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return Clip(tiny_clip(tmp_path_factory.mktemp("clip")))


def test_prompt_scores_equal_the_logits_of_transformers(clip):
    images, prompts = random_images(3), ["a dog", "a photo of a dog in the snow", "a cat"]
    inputs = clip.processor(text=prompts, images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = clip.model(**inputs).logits_per_image.diagonal() / clip.model.logit_scale.exp()
    found = torch.tensor([score.prompt for score in score_images(clip, images, prompts)])
    torch.testing.assert_close(found, expected)


def test_an_image_is_most_similar_to_itself(clip):
    images = random_images(3)
    found = score_images(clip, images, ["x"] * 3, photos=images[:1])
    assert found[0].subject == pytest.approx(1, abs=1e-5) and found[1].subject < found[0].subject
    assert score_images(clip, images, ["x"] * 3)[0].subject is None


def test_a_long_prompt_is_truncated(clip):
    images = random_images(1)
    one, other = (score_images(clip, images, ["dog " * count])[0].prompt for count in (200, 300))
    assert one == pytest.approx(other)


def test_a_missing_model_is_an_error(tmp_path):
    with pytest.raises(UserError, match="can't be loaded"):
        Clip(tmp_path / "nothing")


def test_a_damaged_model_is_an_error(tmp_path):
    folder = shutil.copytree(default_source("toybox"), tmp_path / "clip")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:10_000])
    with pytest.raises(UserError, match="can't be loaded"):
        Clip(folder)


def test_variety_within_groups(clip):
    one, two, three = random_images(3)
    images, groups = [one, one, two, three, one], ["same", "same", "other", "other", "alone"]
    found = [score.variety for score in score_images(clip, images, ["x"] * 5, groups=groups)]
    assert found[:2] == pytest.approx([0, 0], abs=1e-5) and found[4] is None
    similarity = (clip.embed_images([two]) @ clip.embed_images([three]).T).item()
    assert found[2:4] == pytest.approx([1 - similarity] * 2, abs=1e-5)


def test_nearest_photo(clip):
    photos = random_images(3)
    (found,) = score_images(clip, photos[:1], ["x"], photos)
    assert found.nearest == pytest.approx(1, abs=1e-5) and found.subject < found.nearest
