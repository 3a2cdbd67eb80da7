"""Start a run from an existing adapter, of this project or imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hra_diffusion import pipeline
from hra_diffusion.adapters import adapter_file, fingerprint
from hra_diffusion.adapters.adapter_file import AdapterInfo
from hra_diffusion.files import sha256
from training.config import TrainConfig
from training.errors import TrainingError
from training.runs.events import Listener, Notice

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def load_init_adapter(
    path: Path, pipe: StableDiffusionPipeline, parameters: Mapping[str, nn.Parameter], emit: Listener
) -> str:
    """Copy the adapter in a file into the parameters of the new adapter. Returns the SHA-256 of the file.

    Emits a notice if the adapter was trained on other weights. Raises TrainingError if its layers or ranks are others,
    and AdapterFileError for a file that is no adapter.
    """
    info, tensors = adapter_file.read(path)
    if reason := _different_layers(tensors, parameters):
        raise TrainingError(f"--init-adapter {path} does not suit this run: {reason}")
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(tensors[key])
    if fingerprint.distance(info.fingerprint, pipeline.components(pipe)) > fingerprint.TOLERANCE:
        emit(Notice(f"the adapter that this run starts from was trained on other weights ({info.base})"))
    return sha256(path)


def check_init_adapter(path: Path, config: TrainConfig) -> None:
    """Raise TrainingError if the adapter in a file has another method or other options than the run.

    Raises AdapterFileError for a file that is no adapter.
    """
    info, asked = adapter_file.read_info(path), {"method": config.method, **config.options}
    for name, value in {"method": info.method, **info.options}.items():
        if asked.get(name) != value:
            flag = f"--{name.replace('_', '-')}"
            raise TrainingError(f"--init-adapter {path} has {name} {value}, not {asked.get(name)}; use {flag} {value}")


def _different_layers(tensors: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]) -> str:
    """Return the first layer in which the file and the new adapter differ, or ""."""
    hint = "--targets, --exclude, --train-text-encoder and --train-trigger choose them, ranks in a --config file theirs"
    for key in sorted({*tensors, *parameters}):
        if key not in tensors:
            return f"it has no {key}; {hint}"
        if key not in parameters:
            return f"this run does not adapt {key}; {hint}"
        if (own := tuple(tensors[key].shape)) != (new := tuple(parameters[key].shape)):
            return f"{key} is {own} in it, not {new}; {hint}"
    return ""


def settings_of(info: AdapterInfo) -> dict[str, Any]:
    """Return the settings of a run that continues an adapter: method, options, layers and ranks."""
    encoders = {name for name in info.fingerprint if name.startswith("text_encoder")}
    adapted = [path for name in info.fingerprint.keys() - encoders for path in info.fingerprint[name]]
    targets = info.targets
    if targets == "imported":
        tails = sorted({re.sub(r"^.*s\.\d+\.", "", path) for path in adapted})
        targets = rf".*\.({'|'.join(map(re.escape, tails))})"
    return {
        "method": info.method,
        "options": info.options,
        "targets": targets,
        "train_text_encoder": bool(encoders),
        "train_trigger": bool(info.embeddings),
        "ranks": {re.escape(path): rank for ranks in info.ranks.values() for path, rank in ranks.items()},
    }
