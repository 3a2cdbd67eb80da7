"""Devices of a run: the accelerator, and moving components off it while they are not used."""

import contextlib
import os
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from diffusers import StableDiffusionPipeline
from torch import nn

from hra_diffusion.models import families
from hra_diffusion.models.devices import local, training_devices
from training.config import TrainConfig
from training.errors import TrainingError
from training.session.model import disable_gradient_checkpointing, discard_compiled_blocks
from training.session.processes import TIMEOUT


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Create the Accelerator of a run. Raises TrainingError for a device or precision that is not available."""
    # cuDNN's attention in bfloat16 can give NaN gradients where the number of tokens fills no whole tile, on GPUs where
    # PyTorch prefers it (github.com/pytorch/pytorch/issues/196678); the other kernels take as long
    torch.backends.cuda.enable_cudnn_sdp(False)
    if config.device and ":" in config.device:
        if config.device not in training_devices():
            raise TrainingError(f"there is no {config.device} here; use one of {', '.join(training_devices())}")
        torch.cuda.set_device(local(config.device))
    AcceleratorState._reset_state(reset_partial_state="WORLD_SIZE" not in os.environ)
    try:
        accelerator = Accelerator(
            cpu=config.device == "cpu",
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
        )
    except ValueError as error:
        raise TrainingError(f"--mixed-precision {config.mixed_precision} can't be used here: {error}") from error
    if config.device and accelerator.device.type != config.device.split(":")[0]:
        raise TrainingError(f"no {config.device} device is available here; use --device cpu")
    return accelerator


def offload(pipe: StableDiffusionPipeline, config: TrainConfig) -> None:
    """Move the VAE and frozen text encoders to the CPU and free their memory on the accelerator."""
    for model in _idle(pipe, config):
        model.to("cpu")
    if families.denoiser(pipe).device.type == "cuda":
        torch.cuda.empty_cache()


@contextlib.contextmanager
def onload(pipe: StableDiffusionPipeline, config: TrainConfig) -> Iterator[None]:
    """Within the block, the offloaded components are on the denoiser's device."""
    for model in _idle(pipe, config):
        model.to(families.denoiser(pipe).device)
    try:
        yield
    finally:
        offload(pipe, config)


@contextlib.contextmanager
def restore_eval(pipe: StableDiffusionPipeline, config: TrainConfig) -> Iterator[None]:
    """After the block, all components are on the denoiser's device, in eval mode, neither checkpointed nor compiled."""
    try:
        yield
    finally:
        denoiser = families.denoiser(pipe)
        for model in (denoiser, *families.text_encoders(pipe), pipe.vae):
            model.to(denoiser.device).eval()
        disable_gradient_checkpointing(pipe)
        if config.compile:
            discard_compiled_blocks(pipe)


def _idle(pipe: StableDiffusionPipeline, config: TrainConfig) -> list[nn.Module]:
    return [pipe.vae] if config.runs_text_encoder else [pipe.vae, *families.text_encoders(pipe)]
