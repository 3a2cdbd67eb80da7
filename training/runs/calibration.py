"""How long and how much memory a run will take on this machine: from a few real steps, measured once and kept.

A measurement is a run of four steps of the very training code on two pictures of noise, in a process of its own, so
that its peak of memory is the run's. It holds for all runs whose steps cost the same (``costs``).
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from hra_diffusion.errors import UserError
from hra_diffusion.files import make_folder, read_json, write_text
from hra_diffusion.libraries import hide_bitsandbytes
from training import config as configs
from training.config import TrainConfig
from training.runs.events import Step
from training.runs.queue import held
from training.runs.run_folder import LOCK_TIMEOUT

STEPS, PICTURES = 4, 2
ERROR_HOLDS = 600.0
"""Seconds until a measurement that failed is tried again."""
COSTLY = (
    "base", "dtype", "mixed_precision", "device", "method", "targets", "train_text_encoder", "batch_size",
    "gradient_accumulation_steps", "gradient_checkpointing", "resolution", "ema_decay", "sample_prompts",
    "base_weights", "optimizer", "sample_batch_size", "memory_limit", "prediction_type", "rescale_zero_snr",
)  # fmt: skip
"""The fields that decide what a step costs."""


@dataclass(frozen=True)
class Calibration:
    """Measured seconds of each part of a run, and its peak memory in bytes. ``error``: why it can't run at all."""

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


def costs(config: TrainConfig) -> str:
    """A key for all runs on this machine whose steps cost the same."""
    former = {new: old for old, new in configs.RENAMED.items()}  # measurements of earlier versions stay valid
    values = config.model_dump(mode="json", include=set(COSTLY))
    facts = {former.get(name, name): value for name, value in values.items()} | {
        "rank": config.options.get("rank"),
        "prior": config.prior_loss_weight > 0,
        "machine": [platform.node(), os.cpu_count()],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def known(output: Path, config: TrainConfig) -> Calibration | None:
    """The measurement for this run, if there is a whole one. One that failed holds for a while: the cause may pass."""
    place = _place(output, config)
    try:
        found = Calibration(**read_json(place))
        return None if found.error and time.time() - place.stat().st_mtime > ERROR_HOLDS else found
    except (TypeError, OSError):  # none, or another version's
        return None


BROKE_OFF = "the measurement broke off, most likely for want of memory"
_started: dict[Path, "subprocess.Popen[bytes]"] = {}
"""The processes that measure, by where their result will be."""
_starting = threading.Lock()


def start(output: Path, config: TrainConfig) -> None:
    """Begin to measure for this run in a process of its own, unless it is known or a measurement is going on."""
    folder = make_folder(output / ".queue" / "calibrations")
    with _starting:  # its process takes seconds to reach the lock, and several visitors ask meanwhile
        for place in [place for place, process in _started.items() if process.poll() is not None]:
            if _started.pop(place).returncode and not place.exists():  # killed: it had no time to say so itself
                _keep(Calibration(error=BROKE_OFF), place)
        if _started or held(folder / ".lock") or known(output, config):
            return
        configs.write(config, folder / f"{costs(config)}.yaml")
        command = [sys.executable, "-m", "training.runs.calibration", str(output), costs(config)]
        quiet = subprocess.DEVNULL
        _started[_place(output, config)] = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)


def measure(config: TrainConfig) -> Calibration:
    """Train for a few steps and say what each part took. An error a person can put right becomes ``error``."""
    from accelerate import PartialState

    from training.loop import train
    from training.memory.measure import peak_memory

    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        short = _short(config, Path(folder))
        try:
            train(short, Path(folder), [lambda event: times.append(event.seconds) if isinstance(event, Step) else None])
        except UserError as error:
            return Calibration(error=str(error))
        phases = json.loads((Path(folder) / short.name / "state.json").read_text(encoding="utf-8"))["seconds"]
    classes = short.num_class_images if short.prior_loss_weight else 0
    return Calibration(
        load=phases["load base"],
        photo=phases["cache"] / (PICTURES + classes),
        class_image=phases.get("class images", 0.0) / max(1, classes),
        samples=phases.get("samples", 0.0) / 2,
        step=statistics.median(times[1:]),  # the first one warms up
        memory=peak_memory(str(PartialState().device)),
    )


def _short(config: TrainConfig, folder: Path) -> TrainConfig:
    pictures = make_folder(folder / "pictures")
    for number in range(PICTURES):
        noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((512, 512)).save(pictures / f"{number}.png")
    changes = {"name": "calibration", "photos": [str(pictures)], "boxes": {}, "steps": STEPS, "num_class_images": 1,
               "checkpoint_every": STEPS, "sample_every": 0, "lr_warmup_steps": 0}  # fmt: skip
    return configs.parse(config.model_dump(mode="json") | changes)


def _place(output: Path, config: TrainConfig) -> Path:
    return output / ".queue" / "calibrations" / f"{costs(config)}.json"


def _keep(calibration: Calibration, place: Path) -> None:
    write_text(place, json.dumps(dataclasses.asdict(calibration)))


def main(output: Path, key: str) -> None:
    """``python -m training.runs.calibration OUTPUT KEY``: measure for the configuration KEY.yaml and keep the result.

    A measurement that fails is one too: begun again and again it would take the machine for nothing.
    """
    folder = output / ".queue" / "calibrations"
    with contextlib.suppress(Timeout), FileLock(folder / ".lock", timeout=LOCK_TIMEOUT):  # or another one is at work
        try:
            found = measure(configs.read(folder / f"{key}.yaml"))
        except Exception as error:
            found = Calibration(error=str(error).partition("\n")[0] or type(error).__name__)
        _keep(found, folder / f"{key}.json")


if __name__ == "__main__":
    hide_bitsandbytes()
    main(Path(sys.argv[1]), sys.argv[2])
