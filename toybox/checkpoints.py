"""Checkpoints of toybox's models: one safetensors file with weights, optimiser state and progress."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from hra_diffusion.files import atomic_path


@dataclass
class Progress:
    """Progress of a training over all its sessions: optimiser steps, images seen, seconds."""

    step: int = 0
    images: int = 0
    seconds: float = 0.0


def save_checkpoint(path: Path, modules: dict[str, nn.Module], optimiser: Optimizer, progress: Progress) -> None:
    """Write a checkpoint atomically."""
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{key}": value for key, value in state.items()}
    # safetensors needs contiguous tensors that share no memory (tied weights, channels-last)
    tensors = {key: value.detach().contiguous().clone() for key, value in tensors.items()}
    with atomic_path(path) as unfinished:
        save_file(tensors, unfinished, metadata={"progress": json.dumps(asdict(progress))})


def strip_checkpoint(path: Path, output: Path) -> None:
    """Copy a checkpoint without its optimiser state, for publication."""
    with safe_open(path, framework="pt") as file, atomic_path(output) as unfinished:
        weights = {key: file.get_tensor(key) for key in file.keys() if not key.startswith("optimiser/")}  # noqa: SIM118
        save_file(weights, unfinished, metadata=file.metadata())


def load_checkpoint(path: Path, modules: dict[str, nn.Module], optimiser: Optimizer | None = None) -> Progress:
    """Load a checkpoint into modules and, if given, an optimiser; return its progress."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    for name, module in modules.items():
        module.load_state_dict(_with_prefix(tensors, name))
    if optimiser is not None:
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _with_prefix(tensors, "optimiser").items():
            index, entry = key.split("/")
            state.setdefault(int(index), {})[entry] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return read_progress(path)


def read_progress(path: Path) -> Progress:
    """Return the progress of a checkpoint; zero if it doesn't exist."""
    if not path.exists():
        return Progress()
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["progress"])
    # earlier versions, and the published judge, call images pictures
    return Progress(facts["step"], facts["images"] if "images" in facts else facts["pictures"], facts["seconds"])


def _with_prefix(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
