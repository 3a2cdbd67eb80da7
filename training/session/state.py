"""Everything a run holds while it trains."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from hra_diffusion import pipeline
from hra_diffusion.models import families
from hra_diffusion.models.flow import FlowProcess
from hra_diffusion.models.noise import NoiseProcess
from training.config import TrainConfig
from training.data.dataset import Dataset
from training.data.latent_cache import LatentCache
from training.runs.run_folder import Run
from training.session.phase_timer import PhaseTimer
from training.session.processes import Processes


@dataclass
class Session:
    """The state of a training run on one process.

    Attributes:
        denoiser: the prepared ``Denoiser`` (see ``training.session.model``).
        parameters: the adapter's parameters, by their key in the adapter file.
        photos: cached latents and text of the photos, by bucket.
        class_images: the same of the class images for each bucket of the photos; empty without them.
        class_captions: the photos of each bucket with class captions, whose targets the base model predicts; empty
            without them.
        validation: the same of the photo that is held out, or None.
        moving_averages: exponential moving averages of ``parameters``; empty without ``ema_decay``.
        fingerprint: fingerprint of the base model's weights, saved with the adapter.
        processes: the processes of the run.
        init_sha256: hash of the adapter file that the run started from, or "".
        validation_losses: validation losses so far, by step.
        step: number of optimiser steps done.
        skipped_steps: steps in a row that the float16 loss scaler has just skipped.
        graphs: replay the captured step, by the shape of its latents (see ``training.step_graph``); empty if steps run
            eagerly.
    """

    config: TrainConfig
    run: Run
    accelerator: Accelerator
    timer: PhaseTimer
    pipe: StableDiffusionPipeline
    denoiser: nn.Module
    parameters: dict[str, nn.Parameter]
    optimizer: Any
    photos: Sequence[LatentCache]
    class_images: Sequence[LatentCache]
    class_captions: Sequence[LatentCache]
    validation: LatentCache | None
    moving_averages: dict[str, Tensor]
    fingerprint: dict[str, dict[str, float]]
    dataset: Dataset
    noise_process: NoiseProcess | FlowProcess
    processes: Processes
    init_sha256: str = ""
    validation_losses: dict[int, float] = field(default_factory=dict)
    step: int = 0
    skipped_steps: int = 0
    graphs: dict[torch.Size, Callable[[], None]] = field(default_factory=dict)

    @property
    def trained_components(self) -> dict[str, nn.Module]:
        """The components with trained adapters, by name."""
        models = pipeline.components(self.pipe)
        denoiser = families.of(self.pipe).denoiser
        return models if self.config.runs_text_encoder else {denoiser: models[denoiser]}
