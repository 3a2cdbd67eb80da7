"""Interleaved timing: all functions run once per round, so that other load on the machine affects each round alike.

Ratios within a round are therefore more reliable than seconds.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

MIN_ROUNDS = 3
"""Fewest rounds from which a median means something."""


def time_interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: bool = True,
    minutes: float = 60,
    min_rounds: int = MIN_ROUNDS,
    alternate: bool = False,
) -> dict[str, list[float]]:
    """Return the seconds of each function in each round.

    Args:
        functions: called one after another in every round.
        rounds: the number of rounds.
        warm_up: run a round first that is not counted.
        minutes: start no further round after this time.
        min_rounds: measure as many rounds regardless of ``minutes``, up to ``rounds``.
        alternate: reverse the order in every other round.
    """
    spent: dict[str, list[float]] = {name: [] for name in functions}
    start = time.perf_counter()
    for number in range(-warm_up, rounds):
        if number >= min_rounds and time.perf_counter() - start > 60 * minutes:
            break
        order = list(functions.items())
        for name, function in reversed(order) if alternate and number % 2 else order:
            seconds = call_seconds(function)
            if number >= 0:
                spent[name].append(seconds)
    return spent


def call_seconds(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes, work queued on the accelerator included."""
    start = time.perf_counter()
    function()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def ratios(values: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Return the ratio to the baseline in each round."""
    return [value / base for value, base in zip(values, baseline, strict=True)]


def median_with_range(values: Sequence[float], form: str = ".3g") -> str:
    """Format values as their median and range: "2 (1 to 3)"."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
