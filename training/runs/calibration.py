"""Time and memory that a run takes on this machine, measured once from a few real steps (see training.measurement).

A measurement holds for all runs whose steps cost the same (``cost_key``).
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from hra_diffusion.files import make_folder, read_json, write_text
from training import config as configs
from training.config import TrainConfig
from training.runs.locks import is_held

ERROR_HOLDS = 600.0
"""Seconds until a failed measurement is repeated."""
COSTLY = (
    "base", "dtype", "mixed_precision", "device", "method", "targets", "train_text_encoder", "batch_size",
    "gradient_accumulation_steps", "gradient_checkpointing", "resolution", "ema_decay", "sample_prompts",
    "base_weights", "optimizer", "sample_batch_size", "memory_limit", "prediction_type", "rescale_zero_snr",
)  # fmt: skip
"""The fields that determine the cost of a step."""


@dataclass(frozen=True)
class Calibration:
    """Measured seconds of each part of a run, and its peak memory in bytes. ``error``: why it cannot run."""

    load: float = 0.0
    photo: float = 0.0
    class_image: float = 0.0
    samples: float = 0.0
    step: float = 0.0
    memory: int = 0
    error: str = ""

    def seconds(self, config: TrainConfig, photos: int) -> float:
        """Predicted seconds of a run with this many photos."""
        rounds = 1 + (math.ceil(config.steps / config.sample_every) if config.sample_every else 1)
        classes = config.num_class_images if config.prior_loss_weight else 0
        encoded = photos + classes
        return (
            self.load + encoded * self.photo + classes * self.class_image + rounds * self.samples
            + config.steps * self.step
        )  # fmt: skip


def cost_key(config: TrainConfig) -> str:
    """A key that all runs on this machine have in common whose steps cost the same."""
    former = {new: old for old, new in configs.RENAMED.items()}  # measurements of earlier versions stay valid
    values = config.model_dump(mode="json", include=set(COSTLY))
    facts = {former.get(name, name): value for name, value in values.items()} | {
        "rank": config.options.get("rank"),
        "prior": config.prior_loss_weight > 0,
        "machine": [platform.node(), os.cpu_count()],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def known(output: Path, config: TrainConfig) -> Calibration | None:
    """The stored measurement for this run, or None. A failed one expires after ``ERROR_HOLDS``: its cause may pass."""
    place = path_of(output, config)
    try:
        found = Calibration(**read_json(place))
        return None if found.error and time.time() - place.stat().st_mtime > ERROR_HOLDS else found
    except (TypeError, OSError):  # none, or another version's
        return None


INTERRUPTED = "the measurement was interrupted, most likely for lack of memory"
_started: dict[Path, "subprocess.Popen[bytes]"] = {}
"""The measuring processes of this process, by the path of their result."""
_starting = threading.Lock()


def start(output: Path, config: TrainConfig) -> None:
    """Start measuring for this run in a process of its own, unless it is known or a measurement is running."""
    folder = make_folder(folder_of(output))
    with _starting:  # the process takes seconds to reach the lock, and several visitors may call meanwhile
        for place in [place for place, process in _started.items() if process.poll() is not None]:
            if _started.pop(place).returncode and not place.exists():  # killed before it could save a result
                save(Calibration(error=INTERRUPTED), place)
        if _started or is_held(calibration_lock(output)) or known(output, config):
            return
        configs.write(config, folder / f"{cost_key(config)}.yaml")
        command = [sys.executable, "-m", "training.measurement", str(output), cost_key(config)]
        quiet = subprocess.DEVNULL
        _started[path_of(output, config)] = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)


def path_of(output: Path, config: TrainConfig) -> Path:
    """The file that holds, or will hold, the measurement for this run."""
    return folder_of(output) / f"{cost_key(config)}.json"


def save(calibration: Calibration, place: Path) -> None:
    """Write a measurement to a file, whole or not at all."""
    write_text(place, json.dumps(dataclasses.asdict(calibration)))


def folder_of(output: Path) -> Path:
    """The folder of an output folder's measurements."""
    return output / ".queue" / "calibrations"


def calibration_lock(output: Path) -> Path:
    """The lock file that a measuring process holds."""
    return folder_of(output) / ".lock"
