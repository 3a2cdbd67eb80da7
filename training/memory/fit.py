"""Fit a run into ``--memory-limit 8GB`` by the savings that cost least."""

import functools
from collections.abc import Callable, Iterator

from diffusers import StableDiffusionPipeline

from hra_diffusion.errors import UserError
from training.config import TrainConfig
from training.memory.footprint import GIB, Cache, Footprint, predict_footprint
from training.memory.savings import LOADING, SAVINGS

WORTHWHILE = 0.05
"""A saving is used only if it reduces the excess over the limit by at least this fraction."""


def fit_to_limit(
    config: TrainConfig, device: str, pipe: StableDiffusionPipeline | None = None
) -> tuple[TrainConfig, Footprint]:
    """Return the run as it fits in ``config.memory_limit``, and its predicted memory.

    Resolution, rank and what is trained never change. Raises UserError, with the smallest need, if nothing fits.
    """
    known: Cache = {}
    kept = LOADING if pipe else set()
    predict = functools.partial(predict_footprint, device=device, pipe=pipe, known=known)
    size, limit = predict(config), limit_bytes(config)
    while limit and size.peak > limit:
        better = next(_better(config, size, device, predict, kept), None)
        if better is None:
            raise UserError(
                f"this run does not fit in {config.memory_limit}: with all savings it still needs about "
                f"{size.peak / GIB:.1f} GB, most of it in the phase {size.phase!r}; "
                f"use a smaller --resolution than {config.resolution or 'the base has'}, or --no-train-text-encoder"
            )
        config, size = better
    return config, size


def limit_bytes(config: TrainConfig) -> int:
    """``config.memory_limit`` in bytes, 0 for no limit; a GPU sold as 8 GB has 8 × 2³⁰ bytes."""
    return round(float(config.memory_limit.removesuffix("GB")) * GIB) if config.memory_limit else 0


def _better(
    config: TrainConfig, size: Footprint, device: str, predict: Callable[[TrainConfig], Footprint], kept: set[str]
) -> Iterator[tuple[TrainConfig, Footprint]]:
    """The remaining savings that bring the run nearer to its limit; ``kept``: fields that cannot change."""
    limit = limit_bytes(config)
    for saving in SAVINGS:
        changed = saving(config, device)
        if not changed or changed.keys() & kept:
            continue
        lighter = config.model_copy(update=changed)
        after = predict(lighter)
        if after.excess(limit) <= size.excess(limit) * (1 - WORTHWHILE):
            yield lighter, after
