"""What a run gives up to fit in ``--memory-limit 8GB``: what costs least first, each choice announced."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from diffusers import StableDiffusionPipeline

from hra_diffusion.errors import UserError
from hra_diffusion.libraries import bitsandbytes_installed
from hra_diffusion.models.devices import computes_bfloat16
from training.config import TrainConfig
from training.memory.footprint import GIB, Footprint, Known, footprint
from training.runs import calibration
from training.runs.events import Listener, Notice, Plan

WORTH = 0.05
"""A choice is made only if it brings the run nearer to its limit by this part of what is missing."""

Changes = dict[str, object]


def fitted(
    config: TrainConfig, device: str, pipe: StableDiffusionPipeline | None = None
) -> tuple[TrainConfig, Footprint]:
    """The run as it fits in ``config.memory_limit``, and what it will hold: never the resolution, the rank or what is
    trained is given up. Raises UserError, with the least it needs, where nothing fits.
    """
    known: Known = {}
    kept = LOADING if pipe else set()
    predict = functools.partial(footprint, device=device, pipe=pipe, known=known)
    size, limit = predict(config), limit_of(config)
    while limit and size.peak > limit:
        better = next(_better(config, size, device, predict, kept), None)
        if better is None:
            raise UserError(
                f"this run does not fit in {config.memory_limit}: with all that could be given up it still needs about "
                f"{size.peak / GIB:.1f} GB, most of it in the phase {size.phase!r}; "
                f"use a smaller --resolution than {config.resolution or 'the base has'}, or --no-train-text-encoder"
            )
        config, size = better
    return config, size


def planned(
    config: TrainConfig, output: Path, device: str, photos: int, emit: Listener,
    pipe: StableDiffusionPipeline | None = None,
) -> TrainConfig:  # fmt: skip
    """The run as it fits in ``config.memory_limit``; says what was chosen for that, and what the run will take."""
    after, size = fitted(config, device, pipe)
    if after != config:
        emit(Notice(f"to fit in {config.memory_limit}: {changes(config, after)}"))
    measured = calibration.known(output, config)
    seconds = None if measured is None or measured.error else round(measured.seconds(config, photos), 1)
    emit(Plan(size.peak, size.phase, device, seconds, dict(size.phases)))
    return after


def limit_of(config: TrainConfig) -> int:
    """Bytes that ``config.memory_limit`` stands for, 0 for no limit; a card sold as 8 GB has 8 × 2³⁰."""
    return round(float(config.memory_limit.removesuffix("GB")) * GIB) if config.memory_limit else 0


def changes(before: TrainConfig, after: TrainConfig) -> str:
    """What differs, for a person: "dtype bfloat16, gradient checkpointing True"."""
    changed = [name for name in TrainConfig.model_fields if getattr(after, name) != getattr(before, name)]
    return ", ".join(f"{name.replace('_', ' ')} {getattr(after, name)}" for name in changed)


def as_chosen(config: TrainConfig, before: TrainConfig) -> TrainConfig:
    """A resumed run with what was chosen for the same limit when it began."""
    if not config.memory_limit or config.memory_limit != before.memory_limit:
        return config
    return config.model_copy(update={name: getattr(before, name) for name in CHOSEN})


def _better(
    config: TrainConfig, size: Footprint, device: str, predict: Callable[[TrainConfig], Footprint], kept: set[str]
) -> Iterator[tuple[TrainConfig, Footprint]]:
    """The choices left that bring the run nearer to its limit; ``kept`` are fields that can't be changed."""
    limit = limit_of(config)
    for choice in CHOICES:
        changed = choice(config, device)
        if not changed or changed.keys() & kept:
            continue
        lighter = config.model_copy(update=changed)
        after = predict(lighter)
        if after.excess(limit) <= size.excess(limit) * (1 - WORTH):
            yield lighter, after


def fewer_at_once(config: TrainConfig, device: str) -> Changes:
    """Class images and samples in smaller batches: the same pictures, later."""
    return {"sample_batch_size": config.sample_batch_size // 2} if config.sample_batch_size > 1 else {}


def half_precision(config: TrainConfig, device: str) -> Changes:
    """The base in bfloat16, where the device computes in it."""
    able = config.dtype == "float32" and computes_bfloat16(device)
    return {"dtype": "bfloat16", "mixed_precision": "no"} if able else {}


def recompute(config: TrainConfig, device: str = "") -> Changes:
    """Gradient checkpointing: about a third slower."""
    return {} if config.gradient_checkpointing else {"gradient_checkpointing": True}


def smaller_batches(config: TrainConfig, device: str = "") -> Changes:
    """A batch in two halves, or the fewest equal parts it has, accumulated."""
    parts = next((n for n in range(2, config.batch_size + 1) if config.batch_size % n == 0), None)
    if parts is None:
        return {}
    return {
        "batch_size": config.batch_size // parts,
        "gradient_accumulation_steps": config.gradient_accumulation_steps * parts,
    }


def smaller_state(config: TrainConfig, device: str) -> Changes:
    """AdamW's state in 8 bits."""
    able = device == "cuda" and bitsandbytes_installed()
    return {"optimizer": "adamw8bit"} if able and config.optimizer == "adamw" else {}


def eight_bits(config: TrainConfig, device: str) -> Changes:
    """The base's weights in 8 bits."""
    return {"base_weights": "int8"} if config.base_weights == "full" else {}


def four_bits(config: TrainConfig, device: str) -> Changes:
    """The base's weights in 4 bits."""
    return {"base_weights": "nf4"} if config.base_weights != "nf4" else {}


CHOICES: tuple[Callable[[TrainConfig, str], Changes], ...] = (
    fewer_at_once, half_precision, recompute, smaller_batches, smaller_state, eight_bits, four_bits,
)  # fmt: skip
"""In the order of what they cost: time, then accuracy."""
LOADING = {"dtype", "base_weights"}
"""What a pipeline that is held already can no longer give up."""
CHOSEN = ("sample_batch_size", "dtype", "mixed_precision", "gradient_checkpointing", "batch_size",
          "gradient_accumulation_steps", "optimizer", "base_weights")  # fmt: skip
