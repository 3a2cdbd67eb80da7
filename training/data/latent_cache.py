"""Cache of latents and text embeddings, encoded once before training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageOps
from torch import Tensor

from hra_diffusion.models import families
from hra_diffusion.models.devices import vae_upcast
from hra_diffusion.models.families import Text
from training.data.caption_variants import CaptionRows
from training.data.photo import Photo
from training.objective import batch_indices, seeded_generator


class Examples(NamedTuple):
    """B latents (B, C, h, w), their text, and the weights of the latent positions in the loss (B, 1, h, w) or None."""

    latents: Tensor
    text: Text
    mask: Tensor | None = None


@dataclass(frozen=True)
class LatentCache:
    """Latents and text of N images of one size.

    Attributes:
        mean, std: Scaled latent distribution (N, views, C, h, w). The optional second view is the mirrored image.
        text: Token ids, or embeddings if the text encoders are frozen (see ``families``).
        time_ids: Size conditioning of Stable Diffusion XL (N, views, 6).
        captions: Rows of the text that each image may have; None if it has one row per image.
        epoch: Number of the image of each sample of an epoch; None if it contains each image once.
        masks: Weight of each latent position in the loss (N, views, 1, h, w); None if all weigh the same.
    """

    mean: Tensor
    std: Tensor
    text: Text
    time_ids: Tensor | None = None
    captions: CaptionRows | None = None
    epoch: Tensor | None = None
    masks: Tensor | None = None

    @property
    def samples(self) -> Tensor:
        """Number of the image of each sample of an epoch."""
        return torch.arange(len(self.mean)) if self.epoch is None else self.epoch

    def batch(self, size: int, position: int, seed: int, label: str) -> Examples:
        """Return batch ``position`` of ``size`` examples, whose latents are sampled from their distribution."""
        samples = self.samples
        picks = samples[batch_indices(len(samples), size, position, seed, label)]
        generator = seeded_generator(seed, label, "latents", position)
        view = torch.randint(self.mean.shape[1], (size,), generator=generator)
        mean, std = self.mean[picks, view], self.std[picks, view]
        drawing = seeded_generator(seed, label, "captions", position)
        rows = picks if self.captions is None else self.captions.draw(picks, drawing)
        text = {key: value[rows] for key, value in self.text.items()}
        if self.time_ids is not None:
            text["time_ids"] = self.time_ids[picks, view]
        mask = None if self.masks is None else self.masks[picks, view]
        return Examples(mean + std * torch.randn(mean.shape, generator=generator), text, mask)


def encode(
    pipe: StableDiffusionPipeline, images: Sequence[Image.Image], captions: Sequence[str], flip: bool, embed: bool,
    time_ids: Tensor | None = None, masks: Tensor | None = None,
) -> LatentCache:  # fmt: skip
    """Encode RGB images of one size, and captions as ``encode_captions`` does: one per image, unless rows are added."""
    views = [[image, ImageOps.mirror(image)] if flip else [image] for image in images]
    with torch.no_grad():
        moments = [[_moments(pipe, view) for view in image_views] for image_views in views]
    mean, std = (torch.stack([torch.stack([m[i] for m in image]) for image in moments]) for i in (0, 1))
    return LatentCache(mean, std, encode_captions(pipe, captions, embed), time_ids, masks=masks)


def encode_captions(pipe: StableDiffusionPipeline, captions: Sequence[str], embed: bool) -> Text:
    """Tokenize captions. ``embed`` also runs the (frozen) text encoders.

    The embedding of an empty caption is 0 where the base model generates with 0 for an empty negative prompt, as SDXL.
    """
    ids = families.tokenize(pipe, captions)
    if not embed:
        return {"ids": ids}
    text = _embedded(pipe, ids)
    if pipe.config.get("force_zeros_for_empty_prompt"):
        for value in text.values():
            value[[not caption for caption in captions]] = 0
    return text


def mask_weights(
    masks: Sequence[Image.Image | None], latent_size: tuple[int, int], flip: bool, unmasked_weight: float,
    normalize: bool,
) -> Tensor | None:  # fmt: skip
    """Return the weights in the loss of the latent positions of N images (N, views, 1, h, w); None without any mask.

    Masks are averaged over the pixels of a latent position, as ``apply_masked_loss`` of kohya-ss/sd-scripts 48d368f
    does, and raised to ``unmasked_weight``, as ``masked_losses`` of Nerogar/OneTrainer 23df383 does. An image without a
    mask has weights of 1. With ``normalize`` the weights are divided by their mean per image: then a small subject
    counts as much as a large one (OneTrainer's normalize_masked_area_loss). By default the loss remains the mean over
    all positions, as in both trainers.

    Args:
        masks: Greyscale images, white for the subject.
        latent_size: Width and height of the latents.
        flip: Whether there is a second view, the mirrored image.
        unmasked_weight: Weight outside the mask.
        normalize: Whether to divide by the mean.
    """
    if not any(masks):
        return None
    weights = torch.ones(len(masks), 1, latent_size[1], latent_size[0])
    for weight, mask in zip(weights, masks, strict=True):
        if mask:
            weight.copy_(torch.from_numpy(np.asarray(mask.resize(latent_size, Image.Resampling.BOX)) / np.float32(255)))
    weights = weights.clamp(min=unmasked_weight)
    if normalize:
        weights /= weights.mean(dim=(2, 3), keepdim=True)
    return torch.stack([weights, weights.flip(-1)] if flip else [weights], dim=1)


def photo_time_ids(photo: Photo, flip: bool) -> Tensor:
    """Return the time ids of Stable Diffusion XL for a photo and, with ``flip``, its mirror image (views, 6).

    They are the original height and width, the crop's top and left, and the target height and width, as in diffusers'
    train_dreambooth_lora_sdxl.py (huggingface/diffusers 58eb52c): the original size is that of the upright photo, and
    the crop is in pixels of the resized photo, which is mirrored before it is cropped. (sd-scripts 48d368f passes the
    same size, but always centres the crop.) The target size is that of the bucket. For a photo with a crop box, the
    original size is that of the box, so that enlarged details do not count as those of a large photo.
    """
    frame, crop, (width, height) = photo.frame, photo.crop, photo.image.size
    scale = max(width, height) / max(crop[2] - crop[0], crop[3] - crop[1])
    top, left, mirrored = (round(scale * cut) for cut in (crop[1] - frame[1], crop[0] - frame[0], frame[2] - crop[2]))
    original = frame[3] - frame[1], frame[2] - frame[0]
    return torch.tensor([[*original, top, x, height, width] for x in ([left, mirrored] if flip else [left])]).float()


def _embedded(pipe: StableDiffusionPipeline, ids: Tensor) -> Text:
    """Embed token ids (N, encoders, L), one caption at a time. Returns float32 on the CPU."""
    family, encoders = families.of(pipe), families.text_encoders(pipe)
    with torch.no_grad():
        rows = [family.embed(encoders, row[None].to(pipe.device)) for row in ids]
    return {key: torch.cat([row[key].float().cpu() for row in rows]) for key in rows[0]}


def _moments(pipe: StableDiffusionPipeline, image: Image.Image) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with vae_upcast(pipe.vae) as vae:
        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    return families.of(pipe).scale(pipe.vae, posterior.mean[0].float().cpu(), posterior.std[0].float().cpu())
