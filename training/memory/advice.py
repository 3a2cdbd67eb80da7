"""Advice after a failed run: the settings to change, found from the reason of the failure."""

import re
from dataclasses import dataclass, field
from typing import Any

from training import config as configs
from training.config import TrainConfig
from training.memory.savings import gradient_checkpointing, smaller_batches

OUT_OF_MEMORY = ("out of memory", "lack of memory", "want of memory")
"""How the reasons of failures, those of earlier versions included, name exhausted memory."""


@dataclass(frozen=True)
class Advice:
    """A sentence for the user, and the fields to change; empty if no setting helps."""

    text: str
    changes: dict[str, Any] = field(default_factory=dict)


def advise(reason: str, config: TrainConfig) -> Advice:
    """Return what is likely to prevent a failure with this reason."""
    if re.search(r"became (nan|-?inf)", reason):
        rate = float(f"{config.learning_rate / 3:.1g}")
        return Advice(f"Lower the learning rate from {config.learning_rate:g} to {rate:g}.",
                      {"learning_rate": rate})  # fmt: skip
    if any(word in reason.lower() for word in OUT_OF_MEMORY):
        return _less_memory(config)
    if found := re.search(r"rank \d+ is too large for .*, a (\d+) to (\d+) layer", reason):
        rank = min(int(found[1]), int(found[2])) // 4 * 2
        changes: dict[str, Any] = {"options": config.options | {"rank": rank}}
        default = configs.parse(config.model_dump(mode="json") | {"learning_rate": None}).learning_rate
        if config.learning_rate == default:  # that of the other rank may differ
            changes["learning_rate"] = None
        return Advice(f"Use rank {rank}: the layers of this base model are too small for more.", changes)
    if "disk is full" in reason:
        return Advice("Free some disk space, then resume from the last checkpoint.")
    return Advice("The log below shows the details.")


def _less_memory(config: TrainConfig) -> Advice:
    if changes := gradient_checkpointing(config):
        return Advice("Use gradient checkpointing: less memory, a third slower.", changes)
    if changes := smaller_batches(config):
        size = changes["batch_size"]
        return Advice(
            f"Train on {size} photos at a time instead of {config.batch_size}, with accumulated gradients.", changes
        )
    return Advice("Close other programs, or use a lower resolution.")
