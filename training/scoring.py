"""Which checkpoint is best: every round of sample pictures in the eyes of a CLIP model, once the run is over.

The figures are proxies from a few pictures a round: advice where to look, no verdict.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from hra_diffusion.evaluation.clip import Clip, Score, score_images
from hra_diffusion.generation.png import read_image

MARGIN = 1.03
"""Figures from a few pictures a round are not told apart more finely."""


def score_rounds(
    rounds: Mapping[int, Sequence[Path]], prompts: Sequence[str], photos: Sequence[Image.Image], clip: Clip
) -> dict[int, Score]:
    """The mean figures of each round, by step: its files, one a prompt (the class noun in it), against all photos.

    A round with a picture that can't be read has none.
    """
    found = {}
    for step, files in rounds.items():
        pictures = [picture for file in files if (picture := read_image(file))]
        if len(pictures) < len(files):
            continue
        own = score_images(clip, pictures, prompts[: len(pictures)], photos)
        subject = statistics.mean(score.subject or 0.0 for score in own)
        found[step] = Score(subject, statistics.mean(score.prompt for score in own))
    return found


def best(found: Mapping[int, Score]) -> int | None:
    """The step after the start whose likeness to photos and to prompts have the highest product: neither is bought
    with the other. None where nothing was drawn but the base's own idea."""
    return max((step for step in found if step), key=lambda step: _worth(found[step]), default=None)


def _worth(score: Score) -> float:
    return max(0.0, score.subject or 0.0) * max(0.0, score.prompt)


def advice(found: Mapping[int, Score]) -> str:
    """What the figures say in favour of an earlier round than the last; empty where that one is about as good."""
    first, last = best(found), max(found, default=0)
    if first is None or _worth(found[first]) <= MARGIN * _worth(found[last]):
        return ""
    figures = [f"{100 * (found[step].subject or 0):.0f} and {100 * found[step].prompt:.0f}" for step in (first, last)]
    return (
        f"step {first} may serve better than the last: likeness to photos and to prompts {figures[0]} of 100 there, "
        f"{figures[1]} at step {last} (by CLIP, from the sample pictures: proxies)"
    )
