"""Which checkpoint is said to be the best, by toybox's own CLIP pair on its own sample subjects."""

import pytest
from PIL import Image

from hra_diffusion.evaluation.clip import Clip, Score, default_source
from hra_diffusion.models.sources import ASSETS
from training.scoring import advice, best_step, score_rounds


def subject(name):
    return sorted((ASSETS / "subjects" / name).glob("*.png"))


@pytest.fixture(scope="module")
def found():
    """Before: another thing. Then the subject. Then another thing again, as when too much was forgotten."""
    octopus, robot = subject("octopus"), subject("robot")
    photos = [Image.open(file) for file in octopus[:3]]
    rounds = {0: robot[:2], 50: octopus[3:], 100: robot[2:4]}
    return score_rounds(rounds, ["a photo of a toy"] * 2, photos, Clip(default_source("toybox")))


def test_the_round_that_shows_the_subject_is_the_best(found):
    assert found[50].subject > found[100].subject + 0.2
    assert best_step(found) == 50
    assert "step 50" in advice(found) and "step 100" in advice(found) and "proxies" in advice(found)


def test_where_the_last_is_the_best_nothing_is_said():
    assert advice({0: Score(0.1, 0.9), 50: Score(0.4, 0.5), 100: Score(0.5, 0.5)}) == ""


def test_what_reads_the_same_is_no_advice():
    assert advice({0: Score(0.1, 0.9), 50: Score(0.712, 0.321), 100: Score(0.708, 0.319)}) == ""
    assert "step 50" in advice({50: Score(0.74, 0.32), 100: Score(0.70, 0.32)})


def test_likeness_is_not_bought_with_the_prompt():
    assert best_step({0: Score(0.1, 0.9), 50: Score(0.6, 0.3), 100: Score(0.7, 0.05)}) == 50


def test_the_bases_own_idea_is_no_checkpoint():
    assert best_step({0: Score(0.9, 0.9)}) is None and best_step({}) is None and advice({0: Score(0.9, 0.9)}) == ""
