"""Devices of a run: the accelerator, and the components that leave it while they are not used."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from diffusers import StableDiffusionPipeline
from torch import nn

from hra_diffusion.models import families
from training.config import TrainConfig
from training.errors import TrainingError
from training.session.model import _checkpoint_activations


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Devices, precision and processes, anew for each run. Raises TrainingError for a precision the device lacks."""
    # cuDNN's attention in bfloat16 can give NaN gradients where the number of tokens fills no whole tile, on GPUs for
    # which PyTorch prefers it (github.com/pytorch/pytorch/issues/196678); the other kernels take as long
    torch.backends.cuda.enable_cudnn_sdp(False)
    AcceleratorState._reset_state(reset_partial_state="WORLD_SIZE" not in os.environ)
    try:
        accelerator = Accelerator(
            cpu=config.device == "cpu",
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            # the others wait while the main process draws class images
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
        )
    except ValueError as error:
        raise TrainingError(f"--mixed-precision {config.mixed_precision} can't be used here: {error}") from error
    if config.device and accelerator.device.type != config.device:
        raise TrainingError(f"no {config.device} device is available here; use --device cpu")
    return accelerator


def offload(pipe: StableDiffusionPipeline, config: TrainConfig) -> None:
    """Move what training does not use off the accelerator: the VAE, and text encoders that stand still.

    Without an accelerator there is one memory only, and they stay in it.
    """
    for model in _idle(pipe, config):
        model.to("cpu")
    if pipe.unet.device.type == "cuda":
        torch.cuda.empty_cache()


@contextlib.contextmanager
def onload(pipe: StableDiffusionPipeline, config: TrainConfig) -> Iterator[None]:
    """Within the block the parked models are beside the UNet."""
    for model in _idle(pipe, config):
        model.to(pipe.unet.device)
    try:
        yield
    finally:
        offload(pipe, config)


@contextlib.contextmanager
def restore_eval(pipe: StableDiffusionPipeline) -> Iterator[None]:
    """After the block the pipeline can draw again: its models are on one device, and none is set up for training."""
    try:
        yield
    finally:
        encoders = cast(list[Any], families.text_encoders(pipe))
        for model in (pipe.unet, *encoders, pipe.vae):
            model.to(pipe.unet.device).eval()
        pipe.unet.disable_gradient_checkpointing()
        for encoder in encoders:
            _checkpoint_activations(encoder, "disable")


def _idle(pipe: StableDiffusionPipeline, config: TrainConfig) -> list[nn.Module]:
    return [pipe.vae] if config.train_text_encoder else [pipe.vae, *families.text_encoders(pipe)]
