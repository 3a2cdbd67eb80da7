"""The state of a training run."""

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from hra_diffusion import pipeline
from hra_diffusion.models.noise import NoiseProcess
from training.config import TrainConfig
from training.data.latent_cache import LatentCache
from training.data.photos import Dataset
from training.runs.run_folder import Run
from training.session.phase_timer import PhaseTimer


@dataclass
class Session:
    """Everything a run holds while it trains."""

    config: TrainConfig
    run: Run
    accelerator: Accelerator
    clock: PhaseTimer
    pipe: StableDiffusionPipeline
    denoiser: nn.Module
    parameters: dict[str, nn.Parameter]
    optimizer: Any
    photos: LatentCache
    class_images: LatentCache | None
    averages: dict[str, Tensor]
    fingerprint: dict[str, dict[str, float]]
    album: Dataset
    process: NoiseProcess
    step: int = 0
    skipped: int = 0

    @property
    def trained(self) -> dict[str, nn.Module]:
        """The components that learn, by name."""
        models = pipeline.components(self.pipe)
        return models if self.config.train_text_encoder else {"unet": models["unet"]}
