"""The model that a run trains: UNet and text encoders with the new adapter attached."""

from typing import Any, cast

from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from hra_diffusion import pipeline
from hra_diffusion.adapters import adapter_file, attachment
from hra_diffusion.models import families
from hra_diffusion.models.families import Text
from training.budget import adapted_layers
from training.config import TrainConfig
from training.errors import TrainingError


class Denoiser(nn.Module):
    """UNet and, where they learn too, text encoders as one module, so that one wrapper serves several processes."""

    def __init__(self, pipe: StableDiffusionPipeline, with_text: bool):
        super().__init__()
        self.family, self.pixels = families.of(pipe), pipe.vae_scale_factor
        self.unet = pipe.unet
        self.encoders = nn.ModuleList(families.text_encoders(pipe) if with_text else [])

    def forward(self, latents: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        """Prediction (B, C, h, w) for noisy latents, timesteps (B,) and token ids or embeddings."""
        if self.encoders:
            text = text | self.family.embed(list(self.encoders), text["ids"])
        dtype = next(self.unet.parameters()).dtype
        # bfloat16 would round a photo's size
        text = {key: value if key == "time_ids" else value.to(dtype) for key, value in text.items()}
        more = self.family.conditions(text, latents.shape[-1] * self.pixels)
        return self.unet(latents.to(dtype), timesteps, text["hidden"], **more).sample


def add_adapter(config: TrainConfig, pipe: StableDiffusionPipeline) -> dict[str, nn.Parameter]:
    """Attach the new adapter; returns its parameters by file key. Raises TrainingError if the base can't hold it."""
    require_room(config, pipe)
    for encoder in families.text_encoders(pipe):
        attachment.freeze(encoder)
    for number, (model, targets) in enumerate(adapted_layers(config, pipe)):
        attachment.attach(
            model, config.method, config.options, name=config.name, targets=targets, seed=config.seed + number
        )
    return adapter_file.parameters(pipeline.components(pipe), config.name)


def require_room(config: TrainConfig, pipe: StableDiffusionPipeline) -> None:
    """Raises TrainingError if the base can't hold the adapter: an odd target, a rank too large, a name in use."""
    try:
        for model, targets in adapted_layers(config, pipe):
            attachment.planned(model, config.method, config.options, name=config.name, targets=targets)
    except ValueError as error:
        raise TrainingError(f"{config.method} can't be put on {config.base}: {error}") from error


def checkpoint_gradients(pipe: StableDiffusionPipeline) -> None:
    """Have UNet and text encoders recompute in the backward pass what they would keep: less memory, more time."""
    pipe.unet.enable_gradient_checkpointing()
    for encoder in cast(list[Any], families.text_encoders(pipe)):
        _checkpoint_activations(encoder, "enable")


def _checkpoint_activations(encoder: Any, verb: str) -> None:
    """Verb: "enable" or "disable". Before transformers 5.23 it had another name, of which later ones warn."""
    switch = getattr(encoder, f"activation_checkpointing_{verb}", None)
    (switch or getattr(encoder, f"gradient_checkpointing_{verb}"))()
