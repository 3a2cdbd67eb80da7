"""CLIP scores of a run's sample images, and the checkpoint that they and the validation losses favour.

Both come from a few images: a hint about which checkpoint to try, not a measurement.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from hra_diffusion.evaluation.clip import Clip, Score, score_images
from hra_diffusion.generation.png import read_image
from training.runs.events import Best

MARGIN = 1.03
"""Ratio up to which the scores of two rounds count as equal."""
LOSS_MARGIN = 1.01
"""The same for two validation losses."""


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


def choose(scores: Mapping[int, Score], losses: Mapping[int, float], last: int) -> Best | None:
    """Return the checkpoint that the evidence favours, with the reason; None without any.

    Rounds whose product of scores is within ``MARGIN`` of the best count as equal; of these, the lowest validation loss
    decides, if there is one. The last step wins if it is equal to the best, in validation losses within
    ``LOSS_MARGIN``.

    Args:
        scores: mean scores of the sample images, by step; step 0, the base model, does not count.
        losses: validation losses of the same steps, and of others that have a checkpoint.
        last: the last step.
    """
    best = best_step(scores)
    equal = [step for step in scores if step and best and MARGIN * _product(scores[step]) >= _product(scores[best])]
    validated = [step for step in (equal or losses) if step in losses and step]
    if validated:
        lowest = min(validated, key=lambda step: losses[step])
        equal = [step for step in validated if losses[step] <= LOSS_MARGIN * losses[lowest]]
        best = lowest
    if best is None:
        return None
    best = last if last in equal else best
    return Best(best, _reason(best, last, scores, losses))


def _reason(best: int, last: int, scores: Mapping[int, Score], losses: Mapping[int, float]) -> str:
    """Return why a step is favoured, in words."""
    figures = []
    if best in scores:
        own, others = (_figures(scores[step]) if step in scores else "" for step in (best, last))
        comparison = f", those of step {last} {others}" if best != last and others else ""
        figures.append(f"its samples score {own} of 100 for similarity to the photos and to the prompts{comparison}")
    if best in losses:
        comparison = f", that of step {last} {losses[last]:.4f}" if best != last and last in losses else ""
        lowest = " (the lowest)" if losses[best] <= min(loss for step, loss in losses.items() if step) else ""
        figures.append(f"its validation loss is {losses[best]:.4f}{lowest}{comparison}")
    verdict = (
        f"the last checkpoint, step {last}, looks best" if best == last else f"step {best} may be better than the last"
    )
    return f"{verdict}: {'; '.join(figures)} (CLIP proxies and losses from a few images)"


def _figures(score: Score) -> str:
    return f"{100 * (score.subject or 0):.0f} and {100 * score.prompt:.0f}"


def _product(score: Score) -> float:
    return max(0.0, score.subject or 0.0) * max(0.0, score.prompt)
