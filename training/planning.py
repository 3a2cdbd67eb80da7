"""Plan a run before it starts: fit its memory limit, predict its memory and time."""

from pathlib import Path

from diffusers import StableDiffusionPipeline

from training.config import TrainConfig
from training.memory.fit import fit_to_limit
from training.memory.savings import changes
from training.runs import calibration
from training.runs.events import Listener, Notice, Plan


def planned(
    config: TrainConfig, output: Path, device: str, photos: int, emit: Listener,
    pipe: StableDiffusionPipeline | None = None,
) -> TrainConfig:  # fmt: skip
    """Return the run as it fits in ``config.memory_limit``; emit the savings and the predicted memory and time."""
    after, size = fit_to_limit(config, device, pipe)
    if after != config:
        emit(Notice(f"to fit in {config.memory_limit}: {changes(config, after)}"))
    measured = calibration.known(output, config)
    seconds = None if measured is None or measured.error else round(measured.seconds(config, photos), 1)
    emit(Plan(size.peak, size.phase, device, seconds, dict(size.phases)))
    return after
