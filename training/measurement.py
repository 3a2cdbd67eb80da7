"""Measure time and memory of a run by training four steps on two noise images.

``python -m training.measurement OUTPUT KEY`` reads the configuration ``KEY.yaml`` in the folder of
measurements and writes ``KEY.json``. It is a process of its own, whose peak memory is that of the run.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from hra_diffusion.errors import UserError, first_line
from hra_diffusion.files import make_folder
from hra_diffusion.libraries import BITSANDBYTES, PEFT, hide, hide_loading_bars
from hra_diffusion.processes import start_time
from training import config as configs
from training.config import TrainConfig
from training.runs import leases
from training.runs.calibration import LEASE, Calibration, measurements_folder, save
from training.runs.events import Step
from training.runs.index import Index

STEPS, IMAGES = 4, 2
MAX_SECONDS = 1800.0
"""Longest time of a measurement, from when the device is free."""


def measure(config: TrainConfig) -> Calibration:
    """Train for a few steps and return what they took, or the message of the UserError that was raised as ``error``."""
    from accelerate import PartialState

    from training.loop import train  # after bitsandbytes is hidden
    from training.memory.peak import peak_memory

    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        short = _shortened(config, Path(folder))
        try:
            train(short, Path(folder), [lambda event: times.append(event.seconds) if isinstance(event, Step) else None])
        except UserError as error:
            return Calibration(error=str(error))
        phases = json.loads((Path(folder) / short.name / "state.json").read_text(encoding="utf-8"))["seconds"]
    classes = short.num_class_images if short.uses_class_images else 0
    return Calibration(
        load=phases["load base"],
        photo=phases["cache"] / (IMAGES + classes),
        class_image=phases.get("class images", 0.0) / max(1, classes),
        samples=phases.get("samples", 0.0) / 2,
        step=statistics.median(times[1:]),  # the first one is a warm-up
        memory=peak_memory(str(PartialState().device)),
    )


def _shortened(config: TrainConfig, folder: Path) -> TrainConfig:
    images = make_folder(folder / "images")
    for number in range(IMAGES):
        noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((512, 512)).save(images / f"{number}.png")
    changes = {"name": "calibration", "photos": [str(images)], "boxes": {}, "concepts": [], "steps": STEPS,
               "num_class_images": 1, "checkpoint_every": STEPS, "sample_every": 0, "lr_warmup_steps": 0,
               "log_every": 1, "init_adapter": None, "validation": "none", "early_stop": 0,
               "report_to": []}  # fmt: skip
    return configs.parse(config.model_dump(mode="json") | changes)


@contextlib.contextmanager
def time_limit(path: Path) -> Iterator[None]:
    """End this process if the block takes ``MAX_SECONDS``, with an error as the result: it keeps runs waiting."""

    def end() -> None:
        save(Calibration(error=f"a few steps take longer than {MAX_SECONDS / 60:.0f} minutes here"), path)
        os._exit(1)

    timer = threading.Timer(MAX_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def main(output: Path, key: str) -> None:
    """Measure the configuration ``key`` and save the result, or the error, so that a failure is not repeated."""
    hide(BITSANDBYTES, PEFT)
    folder, index = measurements_folder(output), Index(output)
    with leases.held(index, LEASE, "measure", "a measurement") as lease:
        if lease is None:  # another one is running
            return
        try:
            import training.loop  # noqa: F401 (what a run imports; after bitsandbytes is hidden)
            from training.planning import device_of, use_for_run

            hide_loading_bars()
            start = time.time() - start_time(os.getpid())
            config = configs.read(folder / f"{key}.yaml")
            with use_for_run(config, index, device_of(config), "measure"), time_limit(folder / f"{key}.json"):
                result = dataclasses.replace(measure(config), start=start)
        except Exception as error:
            result = Calibration(error=first_line(error))
        save(result, folder / f"{key}.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
