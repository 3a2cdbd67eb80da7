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


def plan_run(
    config: TrainConfig, output: Path, device: str, photos: int, emit: Listener,
    pipe: StableDiffusionPipeline | None = None,
) -> tuple[TrainConfig, int]:  # fmt: skip
    """Return the run as it fits into ``config.memory_limit``, and its predicted memory in bytes.

    Emits the savings and the predicted memory and time.

    If the memory does not fit beside other programs that use the device, a notice says so.
    """
    after, footprint = fit_to_limit(config, device.split(":")[0], pipe)
    if after != config:
        emit(Notice(f"to fit in {config.memory_limit}: {describe_changes(config, after)}"))
    measured = calibration.load(output, config)
    seconds = None if measured is None or measured.error else round(measured.seconds(config, photos), 1)
    emit(Plan(footprint.peak, footprint.phase, device.split(":")[0], seconds, dict(footprint.phases)))
    name, purpose = devices.numbered(device), purpose_of(config)
    others = [lease for lease in device_use.users(Index(output), name) if lease.purpose != purpose]
    if not device_use.fits(name, "generate", footprint.peak, others):
        emit(Notice(f"{device_use.describe(others)} uses {name}, too: there may not be enough memory for both"))
    return after, footprint.peak


def use_for_run(
    config: TrainConfig, index: Index, device: str, kind: str = "train", memory: int = 0, wait: bool = True
) -> contextlib.AbstractContextManager[DeviceUse]:
    """Return a context in which a run uses a device.

    Args:
        config: the run.
        index: the index of the output folder whose programs share the device.
        device: as ``devices.training_devices`` names it.
        kind: "train" or "measure".
        memory: predicted bytes; 0 to use the measured ones or to predict them here, which takes seconds.
        wait: wait for other runs, and for a page that must free its memory first.
    """
    if not memory and (measured := calibration.load(index.output, config)):
        memory = measured.memory
    memory = memory or fit_to_limit(config, device.split(":")[0])[1].peak
    return device_use.using(index, device, kind, purpose_of(config), memory, wait)


def use_of_own_process(config: TrainConfig, index: Index, memory: int) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which the run uses its device beside others, unless its process uses it already.

    Without a prediction of the ``memory``, others are told 0 bytes.
    """
    device = device_of(config)
    if any(lease.purpose == purpose_of(config) for lease in device_use.users(index, device)):
        return contextlib.nullcontext()
    return device_use.using(index, device, "train", purpose_of(config), memory, wait=False)


def device_of(config: TrainConfig) -> str:
    """Return the device of a run, as ``devices.training_devices`` names it."""
    return devices.numbered(devices.device_for(config.device))


def purpose_of(config: TrainConfig) -> str:
    """Return what a run uses a device for, for people."""
    return f"the run {config.name}"
