"""Statistics of a comparison's scores and images."""

import statistics
from dataclasses import dataclass

import numpy as np

from hra_diffusion.comparison.compare import Comparison
from hra_diffusion.evaluation.clip import Score

FIGURES = {
    "subject": "similarity to the photos",
    "prompt": "similarity to the prompt",
    "nearest": "similarity to the nearest photo (close to 1: a copy)",
    "variety": "difference between pictures that differ only in their noise",
    "drift": "change of the class without the trigger (less is better)",
}
"""Fields of Score with their meanings."""


@dataclass(frozen=True)
class Statistic:
    """Mean and standard deviation over a variant's samples; the deviation of a single sample is 0."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.deviation:.2f}"


def score_statistics(comparison: Comparison, variant: int) -> dict[str, Statistic]:
    """Return a variant's statistics by field of Score, without those that were not measured."""
    found = [sample.score for sample in comparison.samples_of(variant) if sample.score]
    figures = {name: [v for score in found if (v := getattr(score, name)) is not None] for name in FIGURES}
    return {
        name: Statistic(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        for name, values in figures.items()
        if values
    }


def clear_best(comparison: Comparison, figure: str) -> int | None:
    """Return the index of the variant whose ``figure`` ("subject", "prompt") is clearly the highest, or None.

    Clearly means: compared with every other variant that has adapters, the mean difference between images of the same
    noise exceeds twice its standard error, over at least four pairs.
    """
    rivals = [index for index, variant in enumerate(comparison.variants) if variant.adapters]
    found = {n: [getattr(sample.score, figure, None) for sample in comparison.samples_of(n)] for n in rivals}
    values = {n: [value for value in own if value is not None] for n, own in found.items()}
    if len(rivals) < 2 or any(len(values[n]) < max(4, len(found[n])) for n in rivals):
        return None
    best = max(rivals, key=lambda index: statistics.mean(values[index]))
    for other in set(rivals) - {best}:
        gains = [a - b for a, b in zip(values[best], values[other], strict=True)]
        if statistics.mean(gains) <= 2 * statistics.stdev(gains) / len(gains) ** 0.5:
            return None
    return best


def difference_from_base(comparison: Comparison) -> list[float | None]:
    """Return each sample's RMS pixel difference (0 to 1) from the base model's image of the same noise.

    None for every sample if the base model is not among the variants. The difference says how much an adapter changes,
    not whether the change is an improvement.
    """
    base = next((index for index, variant in enumerate(comparison.variants) if not variant.adapters), None)
    if base is None:
        return [None] * len(comparison.samples)
    arrays = [np.asarray(sample.image, dtype=np.float64) / 255 for sample in comparison.samples]
    width = len(comparison.variants)
    return [round(float(np.sqrt(np.mean((a - arrays[i - i % width + base]) ** 2))), 4) for i, a in enumerate(arrays)]


def score_summary(score: Score) -> str:
    """Format a score: "subject .71 · prompt .32"."""
    figures = [("subject", score.subject), ("prompt", score.prompt)]
    return " · ".join(f"{name} {value:.2f}".replace("0.", ".") for name, value in figures if value is not None)
