"""Scores of sample images by toybox's CLIP model, on its sample subjects."""

import pytest
import torch
from PIL import Image

from hra_diffusion.evaluation.clip import Clip, Score, default_source
from hra_diffusion.models.sources import ASSETS
from training.scoring import best_step, choose, score_rounds


def subject(name):
    return sorted((ASSETS / "subjects" / name).glob("*.png"))


@pytest.fixture(scope="module")
def scores():
    """Another object at steps 0 and 100, as after overfitting; the subject at step 50."""
    octopus, robot = subject("octopus"), subject("robot")
    photos = [Image.open(file) for file in octopus[:3]]
    rounds = {0: robot[:2], 50: octopus[3:], 100: robot[2:4]}
    return score_rounds(rounds, ["a photo of a toy"] * 2, photos, Clip(default_source("toybox")))


def test_the_round_that_shows_the_subject_is_best(scores):
    assert scores[50].subject > scores[100].subject + 0.2
    assert best_step(scores) == 50
    best = choose(scores, {}, 100)
    assert best is not None and best.step == 50
    assert all(words in best.reason for words in ("step 50", "step 100", "proxies"))


def test_the_last_round_is_named_if_it_is_best_or_as_good():
    for earlier in (Score(0.4, 0.5), Score(0.504, 0.501)):
        best = choose({0: Score(0.1, 0.9), 50: earlier, 100: Score(0.5, 0.5)}, {}, 100)
        assert best is not None and best.step == 100 and "the last checkpoint, step 100, looks best" in best.reason


def test_a_high_subject_score_does_not_make_up_for_a_low_prompt_score():
    assert best_step({0: Score(0.1, 0.9), 50: Score(0.6, 0.3), 100: Score(0.7, 0.05)}) == 50


def test_step_0_is_never_best():
    assert best_step({0: Score(0.9, 0.9)}) is None and best_step({}) is None


def test_rounds_with_unreadable_images_are_not_scored(tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file in files:
        Image.new("RGB", (40, 40), "red").save(file)
    files[1].write_bytes(files[1].read_bytes()[:60])

    class Judge:
        def embed_images(self, images):
            return torch.ones(len(images), 1)

        def embed_texts(self, texts):
            return torch.ones(len(texts), 1)

    rounds = {0: files[:1], 2: files[:2], 4: files[2:], 6: [tmp_path / "gone.png"]}
    scores = score_rounds(rounds, ["a", "b"], [Image.new("RGB", (40, 40))], Judge())
    assert sorted(scores) == [0, 4]
