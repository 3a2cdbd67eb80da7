"""Time and memory of a run on this machine, measured once with a few training steps (see ``training.measurement``).

A measurement is valid for all runs with the same ``cost_key``.
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

from pydantic import ConfigDict

from hra_diffusion import records
from hra_diffusion.files import make_folder, write_text
from training import config as configs
from training.config import TrainConfig
from training.runs import leases
from training.runs.index import Index

ERROR_EXPIRES = 600.0
"""Seconds after which a failed measurement is repeated: its cause may be gone."""
COST_FIELDS = (
    "base", "dtype", "mixed_precision", "device", "method", "targets", "train_text_encoder", "batch_size",
    "gradient_accumulation_steps", "gradient_checkpointing", "resolution", "ema_decay", "sample_prompts",
    "base_weights", "optimizer", "sample_batch_size", "memory_limit", "prediction_type", "rescale_zero_snr",
)  # fmt: skip
"""The fields of TrainConfig that determine time and memory of a step."""
LATER_COST_FIELDS = ("cuda_graph", "compile", "exclude", "ranks", "preservation", "train_trigger")
"""The same that earlier versions did not have. They count if they differ from their defaults."""


@dataclass(frozen=True)
class Calibration:
    """Measured seconds of the parts of a run, and its peak memory.

    Attributes:
        load: seconds to load the base model.
        photo: seconds to encode a photo or class image.
        class_image: seconds to generate a class image.
        samples: seconds of a round of sample images.
        step: seconds of an optimiser step.
        memory: peak memory in bytes.
        start: seconds from the start of a process until it begins.
        error: why such a run fails; empty if it doesn't.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    load: float = 0.0
    photo: float = 0.0
    class_image: float = 0.0
    samples: float = 0.0
    step: float = 0.0
    memory: int = 0
    start: float = 0.0
    error: str = ""

    def seconds(self, config: TrainConfig, photos: int) -> float:
        """Return the predicted seconds of a run with this many photos."""
        later = math.ceil(config.steps / config.sample_every) if config.sample_every else 1
        rounds = 1 + later if config.sample_prompts else 0
        nouns = len({subject.class_noun for subject in config.subjects})
        classes = config.num_class_images * nouns if config.uses_class_images else 0
        encoded = photos + classes
        return (
            self.load + encoded * self.photo + classes * self.class_image + rounds * self.samples
            + config.steps * self.step
        )  # fmt: skip


def cost_key(config: TrainConfig) -> str:
    """Return a key that is equal for runs on this machine whose steps take the same time and memory."""
    old_names = {new: old for old, new in configs.RENAMED.items()}  # measurements of earlier versions stay valid
    values = config.model_dump(mode="json", include=set(COST_FIELDS))
    changed = config.model_dump(mode="json", include=set(LATER_COST_FIELDS), exclude_defaults=True)
    facts = (
        {old_names.get(name, name): value for name, value in values.items()}
        | changed
        | {
            "rank": config.options.get("rank"),
            "prior": config.prior_loss_weight > 0,
            "machine": [platform.node(), os.cpu_count()],
        }
    )
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def load(output: Path, config: TrainConfig) -> Calibration | None:
    """Return the stored measurement for this run, or None. A failed one expires after ``ERROR_EXPIRES``."""
    path = result_path(output, config)
    calibration = records.read(path, Calibration, None)
    try:
        expired = calibration and calibration.error and time.time() - path.stat().st_mtime > ERROR_EXPIRES
    except OSError:  # deleted meanwhile
        return None
    return None if expired else calibration


INTERRUPTED = "the measurement was interrupted, most likely for lack of memory"
_started: dict[Path, "subprocess.Popen[bytes]"] = {}
"""The measuring processes that this process has started, by the path of their result."""
_starting = threading.Lock()


def start(output: Path, config: TrainConfig) -> None:
    """Start a process that measures this run, unless there is a result or a measurement is running."""
    with _starting:  # a process takes seconds to acquire its lease, and other visitors may call in the meantime
        for path in [path for path, process in _started.items() if process.poll() is not None]:
            if _started.pop(path).returncode and not path.exists():  # killed before it could save a result
                save(Calibration(error=INTERRUPTED), path)
        if _started or is_measuring(output) or load(output, config):
            return
        command = [sys.executable, "-m", "training.measurement", str(output), write_request(output, config)]
        quiet = subprocess.DEVNULL
        _started[result_path(output, config)] = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)


def in_progress(output: Path) -> bool:
    """Whether ``start`` does nothing at present: a measurement of this output folder runs, or its process ends."""
    return any(process.poll() is None for process in list(_started.values())) or is_measuring(output)


def write_request(output: Path, config: TrainConfig) -> str:
    """Write the configuration that a measuring process reads, and return its key."""
    key = cost_key(config)
    configs.write(config, make_folder(measurements_folder(output)) / f"{key}.yaml")
    return key


def save(calibration: Calibration, path: Path) -> None:
    """Write a measurement to a file atomically."""
    write_text(path, json.dumps(dataclasses.asdict(calibration)))


def result_path(output: Path, config: TrainConfig) -> Path:
    """Return the file of this run's measurement."""
    return measurements_folder(output) / f"{cost_key(config)}.json"


def measurements_folder(output: Path) -> Path:
    """Return the folder of the measurements."""
    return output / ".queue" / "calibrations"


LEASE = "measurement"
"""The resource of the lease that a measuring process holds."""


def is_measuring(output: Path) -> bool:
    """Whether a process measures a run of this output folder."""
    return bool(leases.live(Index(output), LEASE))
