"""Plan a run before it starts: fit it into its memory limit, and predict its memory and time."""

from pathlib import Path

from diffusers import StableDiffusionPipeline

from training.config import TrainConfig
from training.memory.fit import fit_to_limit
from training.memory.savings import describe_changes
from training.runs import calibration
from training.runs.events import Listener, Notice, Plan


def plan_run(
    config: TrainConfig, output: Path, device: str, photos: int, emit: Listener,
    pipe: StableDiffusionPipeline | None = None,
) -> TrainConfig:  # fmt: skip
    """Return the run as it fits into ``config.memory_limit``; emit the savings and the predicted memory and time."""
    after, footprint = fit_to_limit(config, device, pipe)
    if after != config:
        emit(Notice(f"to fit in {config.memory_limit}: {describe_changes(config, after)}"))
    measured = calibration.load(output, config)
    seconds = None if measured is None or measured.error else round(measured.seconds(config, photos), 1)
    emit(Plan(footprint.peak, footprint.phase, device, seconds, dict(footprint.phases)))
    return after
