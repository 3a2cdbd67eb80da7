"""Fit a run into ``--memory-limit 8GB`` with the savings that cost least."""

import functools
from collections.abc import Callable, Iterator

from diffusers import StableDiffusionPipeline

from hra_diffusion.errors import UserError
from training.config import TrainConfig
from training.memory.footprint import GIB, Cache, Footprint, predict_footprint
from training.memory.savings import LOADING_FIELDS, SAVINGS

MIN_REDUCTION = 0.05
"""A saving is applied only if it reduces the excess over the limit by at least this fraction."""


def fit_to_limit(
    config: TrainConfig, device: str, pipe: StableDiffusionPipeline | None = None
) -> tuple[TrainConfig, Footprint]:
    """Return the run with the savings that fit it into ``config.memory_limit``, and its predicted memory.

    Resolution, rank and targets never change. Raises UserError, with the smallest possible peak, if it does not fit.
    """
    cache: Cache = {}
    fixed = LOADING_FIELDS if pipe else set()
    predict = functools.partial(predict_footprint, device=device, pipe=pipe, cache=cache)
    footprint, limit = predict(config), limit_bytes(config)
    while limit and footprint.peak > limit:
        reduced = next(_reductions(config, footprint, device, predict, fixed), None)
        if reduced is None:
            raise UserError(
                f"this run does not fit in {config.memory_limit}: with all savings it still needs about "
                f"{footprint.peak / GIB:.1f} GB, most of it in the phase {footprint.phase!r}; use a smaller "
                f"--resolution than {config.resolution or 'that of the base model'}, or --no-train-text-encoder"
            )
        config, footprint = reduced
    return config, footprint


def limit_bytes(config: TrainConfig) -> int:
    """Return ``config.memory_limit`` in bytes, 0 for no limit. GPUs sold as 8 GB have 8 × 2³⁰ bytes."""
    return round(float(config.memory_limit.removesuffix("GB")) * GIB) if config.memory_limit else 0


def _reductions(
    config: TrainConfig,
    footprint: Footprint,
    device: str,
    predict: Callable[[TrainConfig], Footprint],
    fixed: set[str],
) -> Iterator[tuple[TrainConfig, Footprint]]:
    """Yield the run with each saving that reduces its excess and changes none of the ``fixed`` fields."""
    limit = limit_bytes(config)
    for saving in SAVINGS:
        changed = saving(config, device)
        if not changed or changed.keys() & fixed:
            continue
        reduced = config.model_copy(update=changed)
        after = predict(reduced)
        if after.excess(limit) <= footprint.excess(limit) * (1 - MIN_REDUCTION):
            yield reduced, after
