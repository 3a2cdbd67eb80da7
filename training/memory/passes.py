"""Peak memory of the passes of a run: encoding a photo, generating an image, and a training step."""

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from hra_diffusion.adapters import attachment
from hra_diffusion.models import families
from hra_diffusion.models.devices import vae_upcast
from hra_diffusion.models.families import Text
from training import objective
from training.config import TrainConfig
from training.memory.meter import peak_bytes
from training.session.model import Denoiser, enable_gradient_checkpointing


def encoding_peak(pipe: StableDiffusionPipeline, resolution: int) -> int:
    """Return the peak of encoding a photo and its caption in bytes."""

    def encode() -> None:
        _embeddings(pipe, 1)
        with vae_upcast(pipe.vae) as vae:
            vae.encode(torch.empty(1, 3, resolution, resolution, dtype=vae.dtype))

    return peak_bytes(encode, [pipe.vae, *families.text_encoders(pipe)])


def generation_peak(pipe: StableDiffusionPipeline, resolution: int) -> int:
    """Return the peak of generating one image with guidance in bytes. A batch needs a multiple of it."""

    def generate() -> None:
        latents = _latents(pipe, resolution, 2)
        Denoiser(pipe, False)(latents, torch.zeros(2), _embeddings(pipe, 2))
        families.of(pipe).decode(pipe, latents[:1])

    return peak_bytes(generate, [families.denoiser(pipe), pipe.vae, *families.text_encoders(pipe)])


def training_peak(config: TrainConfig, pipe: StableDiffusionPipeline, resolution: int) -> int:
    """Return the peak of a training step, gradients included, in bytes. The adapter must be attached."""
    denoiser = Denoiser(pipe, config.runs_text_encoder).train()
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(pipe, config)
    count = config.batch_size * (2 if config.prior_loss_weight else 1)
    text = _token_ids(pipe, count) if config.runs_text_encoder else _cached_embeddings(pipe, count)
    models = [families.denoiser(pipe), *families.text_encoders(pipe)][: None if config.runs_text_encoder else 1]

    def step() -> None:
        latents = _latents(pipe, resolution, count)
        prediction = denoiser(latents, torch.zeros(count), text)
        loss = objective.denoising_loss(prediction, torch.empty_like(latents), torch.ones(count), 0, 1.0)
        penalties = [attachment.penalty(model, config.name) for model in models]
        (loss + sum(penalty for penalty in penalties if penalty is not None)).backward()

    return peak_bytes(step, models, True) + _autocast_copies(config, models[0])


def _autocast_copies(config: TrainConfig, denoiser: nn.Module) -> int:
    """Return the bytes of the weights that autocast casts to 16 bits and keeps for the backward pass."""
    if config.mixed_precision == "no" or config.gradient_checkpointing or config.dtype != "float32":
        return 0
    return sum(2 * parameter.numel() for parameter in denoiser.parameters() if not parameter.requires_grad)


def _latents(pipe: StableDiffusionPipeline, resolution: int, count: int) -> Tensor:
    size = resolution // families.latent_pixels(pipe)
    return torch.empty(count, families.denoiser(pipe).config.in_channels, size, size, device=pipe.device)


def _token_ids(pipe: StableDiffusionPipeline, count: int) -> Text:
    shape = families.of(pipe).ids_shape(families.text_encoders(pipe))
    return {"ids": torch.zeros(count, *shape, dtype=torch.long, device=pipe.device)}


def _embeddings(pipe: StableDiffusionPipeline, count: int) -> Text:
    return families.of(pipe).embed(families.text_encoders(pipe), _token_ids(pipe, count)["ids"])


def _cached_embeddings(pipe: StableDiffusionPipeline, count: int) -> Text:
    """Return embeddings as the latent cache holds them."""
    with torch.no_grad():
        return {key: value.float() for key, value in _embeddings(pipe, count).items()}
