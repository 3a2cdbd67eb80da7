"""Changes to a run that save memory: first those that cost time, then those that cost accuracy."""

from collections.abc import Callable

import torch

from hra_diffusion.libraries import bitsandbytes_installed
from hra_diffusion.models.devices import computes_bfloat16
from training.config import TrainConfig

Changes = dict[str, object]


def smaller_sample_batches(config: TrainConfig, device: str) -> Changes:
    """Generate class and sample images in smaller batches; the images stay the same."""
    return {"sample_batch_size": config.sample_batch_size // 2} if config.sample_batch_size > 1 else {}


def without_cuda_graph(config: TrainConfig, device: str) -> Changes:
    """Run steps eagerly: a CUDA graph holds the memory of a step also while samples are generated."""
    return {"cuda_graph": "off"} if device == "cuda" and config.cuda_graph == "auto" else {}


def half_precision(config: TrainConfig, device: str) -> Changes:
    """Load the base model in bfloat16, if the device supports it."""
    supported = config.dtype == "float32" and computes_bfloat16(device)
    return {"dtype": "bfloat16", "mixed_precision": "no"} if supported else {}


def gradient_checkpointing(config: TrainConfig, device: str = "") -> Changes:
    """Enable gradient checkpointing, which makes steps about a third slower."""
    return {} if config.gradient_checkpointing else {"gradient_checkpointing": True}


def smaller_batches(config: TrainConfig, device: str = "") -> Changes:
    """Split the batch into two equal parts, or the fewest possible, and accumulate their gradients."""
    parts = next((n for n in range(2, config.batch_size + 1) if config.batch_size % n == 0), None)
    if parts is None:
        return {}
    return {
        "batch_size": config.batch_size // parts,
        "gradient_accumulation_steps": config.gradient_accumulation_steps * parts,
    }


def eight_bit_optimizer(config: TrainConfig, device: str) -> Changes:
    """Keep the state of AdamW in 8 bits."""
    supported = device == "cuda" and bitsandbytes_installed()
    return {"optimizer": "adamw8bit"} if supported and config.optimizer == "adamw" else {}


def eight_bit_weights(config: TrainConfig, device: str) -> Changes:
    """Quantise the weights of the base model to 8 bits."""
    return {"base_weights": "int8"} if config.base_weights == "full" else {}


def four_bit_weights(config: TrainConfig, device: str) -> Changes:
    """Quantise the weights of the base model to 4 bits."""
    return {"base_weights": "nf4"} if config.base_weights != "nf4" else {}


SAVINGS: tuple[Callable[[TrainConfig, str], Changes], ...] = (
    smaller_sample_batches, without_cuda_graph, half_precision, gradient_checkpointing, smaller_batches,
    eight_bit_optimizer, eight_bit_weights, four_bit_weights,
)  # fmt: skip
"""All savings, in the order of their cost."""
LOADING_FIELDS = {"dtype", "base_weights"}
"""Fields that cannot change once a pipeline is loaded."""
REDUCED_FIELDS = ("gradient_checkpointing", "batch_size", "gradient_accumulation_steps")
"""Fields that ``reduced_memory`` changes."""
SAVED_FIELDS = (*REDUCED_FIELDS, *LOADING_FIELDS, "sample_batch_size", "mixed_precision", "optimizer")
"""Fields that savings change."""


def describe_changes(before: TrainConfig, after: TrainConfig) -> str:
    """Return the fields that differ as text: "dtype bfloat16, gradient checkpointing True"."""
    changed = [name for name in TrainConfig.model_fields if getattr(after, name) != getattr(before, name)]
    return ", ".join(f"{name.replace('_', ' ')} {getattr(after, name)}" for name in changed)


def restore_savings(config: TrainConfig, before: TrainConfig) -> TrainConfig:
    """Return a resumed run with the savings that ``before``, its stored configuration, chose for the same limit."""
    if not config.memory_limit or config.memory_limit != before.memory_limit:
        return config
    return config.model_copy(update={name: getattr(before, name) for name in SAVED_FIELDS})


def reduced_memory(config: TrainConfig) -> TrainConfig | None:
    """Return the run with less memory and longer steps, or None if nothing is left to reduce.

    Enables gradient checkpointing and accumulates the gradients of smaller batches. Every step trains on the same
    photos as before, with other noise.
    """
    changed = gradient_checkpointing(config) | smaller_batches(config)
    return config.model_copy(update=changed) if changed else None


def restore_reductions(config: TrainConfig, before: TrainConfig) -> TrainConfig:
    """Return a resumed run with the ``REDUCED_FIELDS`` of ``before``, its last checkpoint.

    If they differ by what a run does when out of memory, before or after that checkpoint; else ``config`` itself.
    """
    if _reduces_to(config, before) or _reduces_to(before, config):
        return config.model_copy(update={name: getattr(before, name) for name in REDUCED_FIELDS})
    return config


def _reduces_to(config: TrainConfig, other: TrainConfig) -> bool:
    after: TrainConfig | None = config
    while after := reduced_memory(after):
        if all(getattr(after, name) == getattr(other, name) for name in REDUCED_FIELDS):
            return True
    return False


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that the memory of the device or the computer is exhausted."""
    message = str(error).lower()  # MPS and the CPU raise a plain RuntimeError
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "out of memory" in message
        or "can't allocate memory" in message
    )
