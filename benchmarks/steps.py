"""Training steps that benchmarks measure: single optimiser steps of each method, and the trainer's own."""

import argparse
import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline

from app.benchmarking.workloads import make_training_step
from benchmarks.models import copy_with_adapter, load_unet
from hra_diffusion.adapters import attachment, registry
from hra_diffusion.adapters.quantization import quantise
from hra_diffusion.allocator import retain_freed_memory
from hra_diffusion.models import sources
from training import config as configs
from training.data.dataset import load_dataset
from training.memory.peak import peak_memory, reset_peak_memory
from training.runs.events import Event, Notice
from training.runs.run_folder import Run
from training.session.devices import make_accelerator
from training.session.phase_timer import PhaseTimer
from training.session.processes import Processes
from training.session.setup import set_up
from training.session.state import Session
from training.step import TrainingStep
from training.step_graph import capture_cuda_graph, capture_step

SUBJECT = sources.ASSETS / "subjects" / "octopus"


def make_step(unet: Any, method: str, rank: int, batch_size: int, side: int, **options: Any) -> Callable[[], None]:
    """Return an optimiser step of a method, its penalty included, on a copy of the UNet of its own."""
    model, parameters = copy_with_adapter(unet, method, rank, **options)
    if method not in registry.method_names():
        return make_training_step(model, parameters, batch_size, side)
    return make_training_step(model, parameters, batch_size, side, partial(attachment.penalty, model, "default"))


def make_steps(
    unet: Any, methods: Sequence[str], rank: int, batch_size: int, side: int
) -> dict[str, Callable[[], None]]:
    """Return an optimiser step of each method."""
    return {method: make_step(unet, method, rank, batch_size, side) for method in methods}


def captured(steps: Mapping[str, Callable[[], None]], device: str) -> dict[str, Callable[[], None]]:
    """Return the replay of each step as a CUDA graph, named "…, CUDA graph"; on other devices none."""
    return {f"{name}, CUDA graph": capture_cuda_graph(step) for name, step in steps.items()} if device == "cuda" else {}


def step_memory(
    base: str, device: str, dtype: str, method: str, rank: int, batch_size: int, side: int,
    checkpointing: bool = False, weights: str = "full",
) -> tuple[float, float]:  # fmt: skip
    """Return the peak memory of this process during training steps in GiB: in total, and beyond the base model.

    On the CPU call it in a process of its own: freed memory may stay resident.

    ``weights``: "full", or a quantisation of the base model ("int8", "nf4").
    """
    gc.collect()
    unet = load_unet(base, device, dtype)
    if weights != "full":
        quantise(unet, weights)
    before = reset_peak_memory(device)
    model, parameters = copy_with_adapter(unet, method, rank)
    if checkpointing:
        model.train().enable_gradient_checkpointing()
    step = make_training_step(model, parameters, batch_size, side)
    for _ in range(2 if device == "cuda" else 1):  # the optimiser allocates its state in the first step
        step()
    peak = peak_memory(device)
    return peak / 2**30, (peak - before) / 2**30


def train_config(args: argparse.Namespace, **changes: Any) -> configs.TrainConfig:
    """Return the configuration of a run on the sample subject, reduced to what a plain DreamBooth loop does.

    No min-SNR weighting, timestep bias, prior preservation or sample images; only attention is adapted.
    """
    plain = {"min_snr_gamma": 0, "timestep_bias": 1, "prior_loss_weight": 0, "targets": "attention"}
    constant, silent = {"lr_scheduler": "constant", "lr_warmup_steps": 0}, {"sample_every": 0, "sample_prompts": []}
    named = {"name": "bench", "photos": [SUBJECT], "class_noun": "toy", "device": args.device, "dtype": args.dtype}
    return configs.parse(plain | constant | silent | named | changes)


def start_session(pipe: StableDiffusionPipeline, config: configs.TrainConfig, folder: Path) -> Session:
    """Set up the trainer on a pipeline, ready for its first step."""
    retain_freed_memory()  # as in a run
    accelerator = make_accelerator(config)
    dataset = load_dataset(config.photos, config.resolution or 128, config.crop, config.boxes, config.mask)
    timer, processes = PhaseTimer(True, [print_notice]), Processes(accelerator)
    return set_up(config, Run(folder / config.name), accelerator, pipe, dataset, timer, processes)


def print_notice(event: Event) -> None:
    """Print a notice of the trainer, such as that its step runs without a CUDA graph."""
    if isinstance(event, Notice):
        print(event.message)


def trainer_step(session: Session) -> Callable[[], object]:
    """Return a function that takes the session's next optimiser step, on a GPU as a CUDA graph, as a run does."""
    step = TrainingStep(session)
    capture_step(step)
    return partial(step, session.config.learning_rate)
