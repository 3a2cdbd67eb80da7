"""Plan a run before it starts: fit it into its memory limit, predict its memory and time, and reserve its device."""

import contextlib
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline

from hra_diffusion.models import devices
from training.config import TrainConfig
from training.memory.fit import fit_to_limit
from training.memory.savings import describe_changes
from training.runs import calibration, device_use
from training.runs.device_use import DeviceUse
from training.runs.events import Listener, Notice, Plan
from training.runs.index import Index
from training.runs.leases import run_purpose


def plan_run(
    config: TrainConfig, output: Path, device: str, photos: int, emit: Listener,
    pipe: StableDiffusionPipeline | None = None,
) -> tuple[TrainConfig, int]:  # fmt: skip
    """Return the run as it fits into ``config.memory_limit``, and its predicted memory in bytes.

    Emits the savings and the predicted memory and time.

    If the memory does not fit beside other programs that use the device, a notice says so.
    """
    after, footprint = fit_to_limit(config, device, pipe)
    if after != config:
        emit(Notice(f"to fit in {config.memory_limit}: {describe_changes(config, after)}"))
    measured = calibration.load(output, config)
    seconds = None if measured is None or measured.error else round(measured.seconds(config, photos), 1)
    emit(Plan(footprint.peak, footprint.phase, device, seconds, dict(footprint.phases)))
    name, purpose = device_of(config), run_purpose(config.name)
    others = [lease for lease in device_use.users(Index(output), name) if lease.purpose != purpose]
    if not device_use.fits(name, "generate", footprint.peak, others):
        emit(Notice(f"{device_use.describe(others)} uses {name}, too: there may not be enough memory for both"))
    return after, footprint.peak


def use_for_run(
    config: TrainConfig, index: Index, device: str, kind: str = "train"
) -> contextlib.AbstractContextManager[DeviceUse]:
    """Return a context in which a run uses a device, after other runs and a page that must free its memory first.

    The memory is the measured one, or else it is predicted, which takes seconds.

    Args:
        config: the run.
        index: the index of the output folder whose programs share the device.
        device: as ``devices.training_devices`` names it.
        kind: "train" or "measure".
    """
    measured = calibration.load(index.output, config)
    memory = (measured and measured.memory) or fit_to_limit(config, device.split(":")[0])[1].peak
    return device_use.using(index, device, kind, run_purpose(config.name), memory)


def use_of_own_process(config: TrainConfig, index: Index, memory: int) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which the run uses its device beside others, unless its process uses it already.

    Without a prediction of the ``memory``, others are told 0 bytes.
    """
    device, purpose = device_of(config), run_purpose(config.name)
    if any(lease.purpose == purpose for lease in device_use.users(index, device)):
        return contextlib.nullcontext()
    return device_use.using(index, device, "train", purpose, memory, wait=False)


def device_of(config: TrainConfig) -> str:
    """Return the device of a run, as ``devices.training_devices`` names it."""
    return devices.numbered(devices.device_for(config.device))
