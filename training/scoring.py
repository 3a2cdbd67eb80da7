"""CLIP scores of a run's sample images, and the checkpoint they favour.

The scores come from a few images per round: a hint about which checkpoint to try, not a measurement.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from hra_diffusion.evaluation.clip import Clip, Score, score_images
from hra_diffusion.generation.png import read_image

MARGIN = 1.03
"""Ratio up to which the scores of two rounds count as equal."""


def score_rounds(
    rounds: Mapping[int, Sequence[Path]], prompts: Sequence[str], photos: Sequence[Image.Image], clip: Clip
) -> dict[int, Score]:
    """Return the mean scores of each round by its step. Rounds with an unreadable image are left out.

    Args:
        rounds: the image files of each round by step, one per prompt.
        prompts: the sample prompts, with the class noun for the subject.
        photos: the photos that the subject score compares with.
    """
    scores = {}
    for step, files in rounds.items():
        images = [image for file in files if (image := read_image(file))]
        if len(images) < len(files):
            continue
        each = score_images(clip, images, prompts[: len(images)], photos)
        subject = statistics.mean(score.subject or 0.0 for score in each)
        scores[step] = Score(subject, statistics.mean(score.prompt for score in each))
    return scores


def mean_scores(scores: Sequence[Mapping[int, Score]]) -> dict[int, Score]:
    """Return the mean over several subjects of the scores by step. Steps that one lacks are left out."""
    steps = [step for step in scores[0] if all(step in own for own in scores)]
    return {
        step: Score(
            statistics.mean(own[step].subject or 0.0 for own in scores),
            statistics.mean(own[step].prompt for own in scores),
        )
        for step in steps
    }


def best_step(scores: Mapping[int, Score]) -> int | None:
    """Return the step with the highest product of subject and prompt score, or None without trained rounds.

    The product favours neither score at the expense of the other. Step 0, the base model, does not count.
    """
    return max((step for step in scores if step), key=lambda step: _product(scores[step]), default=None)


def _product(score: Score) -> float:
    return max(0.0, score.subject or 0.0) * max(0.0, score.prompt)


def advice(scores: Mapping[int, Score]) -> str:
    """Return a sentence if an earlier round scores better than the last by more than MARGIN, else ""."""
    best, last = best_step(scores), max(scores, default=0)
    if best is None or _product(scores[best]) <= MARGIN * _product(scores[last]):
        return ""
    figures = [f"{100 * (scores[step].subject or 0):.0f} and {100 * scores[step].prompt:.0f}" for step in (best, last)]
    return (
        f"step {best} may be better than the last: its samples score {figures[0]} of 100 for similarity to the photos "
        f"and to the prompts, those of step {last} {figures[1]} (CLIP proxies from a few images)"
    )
