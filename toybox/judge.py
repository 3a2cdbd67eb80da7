"""The judge's classes in toybox's world, its checkpoints, and its accuracy. See ``hra_diffusion.evaluation.judge``."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from hra_diffusion.evaluation.judge import CHANNELS, Judge
from toybox.attributes import ATTRIBUTES
from toybox.checkpoints import load_checkpoint
from toybox.labels import Label
from toybox.objects import OBJECTS
from toybox.scenes import SCENES

OBJECT_NAMES: tuple[str, ...] = tuple(entry.name for entry in OBJECTS)
SCENE_NAMES: tuple[str, ...] = tuple(SCENES)
ATTRIBUTE_NAMES: tuple[str, ...] = ("", *ATTRIBUTES)
"""Class names in the order of their indices. The first attribute is none."""

UNKNOWN = -100
"""Target that the loss ignores: the object where an image shows two, or one in other colours."""


def make_judge(channels: tuple[int, int, int] = CHANNELS) -> Judge:
    """Create a judge of toybox's classes."""
    return Judge(len(OBJECT_NAMES), len(SCENE_NAMES), len(ATTRIBUTE_NAMES), channels)


def load_judge(checkpoint: Path, channels: tuple[int, int, int] = CHANNELS) -> Judge:
    """Load the judge from a checkpoint. Raises FileNotFoundError if there is none."""
    if not checkpoint.exists():
        raise FileNotFoundError(f"no judge at {checkpoint}: run the `judge` stage first")
    judge = make_judge(channels)
    load_checkpoint(checkpoint, {"judge": judge})
    return judge.eval().requires_grad_(False)


def label_targets(labels: Iterable[Label]) -> Tensor:
    """Return the class indices (N, 3) of each label's object, scene and attribute, UNKNOWN where ambiguous."""
    objects, scenes, attributes = (
        {name: number for number, name in enumerate(names)} for names in (OBJECT_NAMES, SCENE_NAMES, ATTRIBUTE_NAMES)
    )
    rows = [
        (UNKNOWN, scenes[label.scene], UNKNOWN)
        if label.second_object
        else (
            UNKNOWN if label.hue_shift else objects[label.object],
            scenes[label.scene],
            attributes[label.attribute],
        )
        for label in labels
    ]
    return torch.tensor(rows)


def accuracy(predicted: Tensor, targets: Tensor) -> float:
    """Share of predictions equal to the targets, without UNKNOWN ones; NaN if all are."""
    known = targets != UNKNOWN
    return (predicted[known] == targets[known]).float().mean().item()
