"""What to change after a failure: from the reason a run gives to settings that are likely to get through."""

import re
from dataclasses import dataclass, field
from typing import Any

from training.config import TrainConfig
from training.memory.savings import recompute, smaller_batches

MEMORY = ("out of memory", "want of memory", "lack of memory")


@dataclass(frozen=True)
class Advice:
    """One sentence for a person, and the fields to change; no changes where only the person can help."""

    text: str
    changes: dict[str, Any] = field(default_factory=dict)


def advise(reason: str, config: TrainConfig) -> Advice:
    """What is likely to help against this reason of failure."""
    if re.search(r"became (nan|-?inf)", reason):
        rate = float(f"{config.learning_rate / 3:.1g}")
        return Advice(f"Learn more carefully: learning rate {rate:g} in place of {config.learning_rate:g}.",
                      {"learning_rate": rate})  # fmt: skip
    if any(word in reason.lower() for word in MEMORY):
        return _less_memory(config)
    if found := re.search(r"rank \d+ is too large for .*, a (\d+) to (\d+) layer", reason):
        rank = min(int(found[1]), int(found[2])) // 4 * 2
        return Advice(f"Use rank {rank}, which this base can hold.", {"options": config.options | {"rank": rank}})
    if "disk is full" in reason:
        return Advice("Free some space, then resume: nothing that was learned is lost.")
    return Advice("The log below has the details.")


def _less_memory(config: TrainConfig) -> Advice:
    if changes := recompute(config):
        return Advice("Take less memory, a third slower: gradient checkpointing.", changes)
    if changes := smaller_batches(config):
        size = changes["batch_size"]
        return Advice(f"Take less memory: {size} photos at a time in place of {config.batch_size}, added up.", changes)
    return Advice("Close other programs, or use a smaller resolution.")
