"""Latents and text embeddings, computed once: what every training step reads instead of photos and captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageOps
from torch import Tensor

from training.objective import batch_indices, stream


@dataclass(frozen=True)
class Examples:
    """N encoded pictures. ``mean``, ``std`` (N, views, C, h, w): the scaled latent distribution of each picture and,
    as second view, of its mirror image; ``text``: token ids (N, L), or embeddings (N, L, d) if they stand still."""

    mean: Tensor
    std: Tensor
    text: Tensor

    def batch(self, size: int, position: int, seed: int, label: str) -> tuple[Tensor, Tensor]:
        """Batch number ``position``: latents (size, C, h, w) drawn from their distribution, and their text."""
        picks = torch.tensor(batch_indices(len(self.mean), size, position, seed, label))
        generator = stream(seed, label, "latents", position)
        view = torch.randint(self.mean.shape[1], (size,), generator=generator)
        mean, std = self.mean[picks, view], self.std[picks, view]
        return mean + std * torch.randn(mean.shape, generator=generator), self.text[picks]


def encode(
    pipe: StableDiffusionPipeline, images: Sequence[Image.Image], captions: Sequence[str], flip: bool, embed: bool
) -> Examples:
    """Encode square RGB images with their captions; ``embed`` also runs the (frozen) text encoder."""
    views = [[image, ImageOps.mirror(image)] if flip else [image] for image in images]
    with torch.no_grad():
        moments = [[_moments(pipe, view) for view in both] for both in views]
        text = tokenize(pipe, captions)
        if embed:
            text = torch.cat([pipe.text_encoder(ids[None].to(pipe.device))[0].float().cpu() for ids in text])
    mean, std = (torch.stack([torch.stack([m[i] for m in both]) for both in moments]) for i in (0, 1))
    return Examples(mean, std, text)


def tokenize(pipe: StableDiffusionPipeline, captions: Sequence[str]) -> Tensor:
    """Token ids (N, L), padded and cut to the tokenizer's length as the pipeline does."""
    tokenizer = pipe.tokenizer
    return tokenizer(
        list(captions),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def too_long(pipe: StableDiffusionPipeline, captions: Sequence[str]) -> list[str]:
    """The captions whose end the text encoder will not see."""
    limit = pipe.tokenizer.model_max_length
    return [caption for caption in captions if len(pipe.tokenizer(caption).input_ids) > limit]


def _moments(pipe: StableDiffusionPipeline, image: Image.Image) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    posterior = pipe.vae.encode(pixels.to(pipe.vae.device, pipe.vae.dtype)).latent_dist
    shift = getattr(pipe.vae.config, "shift_factor", None) or 0.0
    scale = pipe.vae.config.scaling_factor
    return (posterior.mean[0].float().cpu() - shift) * scale, posterior.std[0].float().cpu() * scale
