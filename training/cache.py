"""Latents and text embeddings, computed once: what every training step reads instead of photos and captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageOps
from torch import Tensor

from hra_diffusion import families
from hra_diffusion.families import Text
from hra_diffusion.pipeline import wide_enough
from training.objective import batch_indices, stream


@dataclass(frozen=True)
class Examples:
    """N encoded pictures. ``mean``, ``std`` (N, views, C, h, w): the scaled latent distribution of each picture and,
    as second view, of its mirror image; ``text``: token ids, or embeddings if they stand still (see families)."""

    mean: Tensor
    std: Tensor
    text: Text

    def batch(self, size: int, position: int, seed: int, label: str) -> tuple[Tensor, Text]:
        """Batch number ``position``: latents (size, C, h, w) drawn from their distribution, and their text."""
        picks = torch.tensor(batch_indices(len(self.mean), size, position, seed, label))
        generator = stream(seed, label, "latents", position)
        view = torch.randint(self.mean.shape[1], (size,), generator=generator)
        mean, std = self.mean[picks, view], self.std[picks, view]
        return mean + std * torch.randn(mean.shape, generator=generator), {
            key: value[picks] for key, value in self.text.items()
        }


def encode(
    pipe: StableDiffusionPipeline, images: Sequence[Image.Image], captions: Sequence[str], flip: bool, embed: bool
) -> Examples:
    """Encode square RGB images with their captions; ``embed`` also runs the (frozen) text encoder."""
    views = [[image, ImageOps.mirror(image)] if flip else [image] for image in images]
    with torch.no_grad():
        moments = [[_moments(pipe, view) for view in both] for both in views]
        ids = families.tokenize(pipe, captions)
        text = {"ids": ids} if not embed else _embedded(pipe, ids)
    mean, std = (torch.stack([torch.stack([m[i] for m in both]) for both in moments]) for i in (0, 1))
    return Examples(mean, std, text)


def _embedded(pipe: StableDiffusionPipeline, ids: Tensor) -> Text:
    """Token ids (N, encoders, L) through the text encoders, one caption at a time, in float32 on the CPU."""
    family, encoders = families.of(pipe), families.text_encoders(pipe)
    rows = [family.embed(encoders, row[None].to(pipe.device)) for row in ids]
    return {key: torch.cat([row[key].float().cpu() for row in rows]) for key in rows[0]}


def _moments(pipe: StableDiffusionPipeline, image: Image.Image) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with wide_enough(pipe.vae) as vae:
        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    shift = getattr(pipe.vae.config, "shift_factor", None) or 0.0
    scale = pipe.vae.config.scaling_factor
    return (posterior.mean[0].float().cpu() - shift) * scale, posterior.std[0].float().cpu() * scale
