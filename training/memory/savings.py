"""What a run can change to need less memory, in the order of its cost: time first, then accuracy."""

from collections.abc import Callable

import torch

from hra_diffusion.libraries import bitsandbytes_installed
from hra_diffusion.models.devices import computes_bfloat16
from training.config import TrainConfig

Changes = dict[str, object]


def fewer_at_once(config: TrainConfig, device: str) -> Changes:
    """Class and sample images in smaller batches: the same images, later."""
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


SAVINGS: tuple[Callable[[TrainConfig, str], Changes], ...] = (
    fewer_at_once, half_precision, recompute, smaller_batches, smaller_state, eight_bits, four_bits,
)  # fmt: skip
"""All savings, in the order of their cost."""
LOADING = {"dtype", "base_weights"}
"""Fields that cannot change once a pipeline is loaded."""
CHOSEN = ("sample_batch_size", "dtype", "mixed_precision", "gradient_checkpointing", "batch_size",
          "gradient_accumulation_steps", "optimizer", "base_weights")  # fmt: skip
"""The fields that savings change."""
ON_FAILURE = ("gradient_checkpointing", "batch_size", "gradient_accumulation_steps")
"""The fields that change when a run is out of memory."""


def changes(before: TrainConfig, after: TrainConfig) -> str:
    """Describe what differs: "dtype bfloat16, gradient checkpointing True"."""
    changed = [name for name in TrainConfig.model_fields if getattr(after, name) != getattr(before, name)]
    return ", ".join(f"{name.replace('_', ' ')} {getattr(after, name)}" for name in changed)


def as_chosen(config: TrainConfig, before: TrainConfig) -> TrainConfig:
    """Return a resumed run with the savings that were chosen for the same limit when it began."""
    if not config.memory_limit or config.memory_limit != before.memory_limit:
        return config
    return config.model_copy(update={name: getattr(before, name) for name in CHOSEN})


def reduced_memory(config: TrainConfig) -> TrainConfig | None:
    """Return the run with less memory and more time: the same photos in every step.

    Turns gradient checkpointing on and accumulates the batch in parts, each with noise of its own. None if neither is
    left to do.
    """
    changed = recompute(config) | smaller_batches(config)
    return config.model_copy(update=changed) if changed else None


def as_reduced(config: TrainConfig, before: TrainConfig) -> TrainConfig:
    """Return a resumed run with the changes that ``before``, its stored configuration, made when out of memory."""
    after: TrainConfig | None = config
    while after := reduced_memory(after):
        if all(getattr(after, name) == getattr(before, name) for name in ON_FAILURE):
            return after
    return config


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that the memory of the device or the computer is exhausted."""
    said = str(error).lower()  # on Macs it is a plain RuntimeError
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "can't allocate memory" in said
