"""Latents to images, in smaller batches or in tiles where memory runs out."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hra_diffusion.errors import Note
from hra_diffusion.models import families

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def decode(pipe: StableDiffusionPipeline, latents: Tensor, free_memory: Callable[[], bool]) -> list[np.ndarray]:
    """Decode latents (N, channels, height, width) to N images (height, width, 3) from 0 to 1.

    If memory runs out and ``free_memory`` can't free any, the batch is halved. A single image is then decoded in tiles,
    with a warning (Note), since their seams may be visible; if that fails, too, torch.OutOfMemoryError is raised.
    """
    family, images = families.of(pipe), []
    size, in_tiles = len(latents), False
    while len(images) < len(latents):
        batch = latents[len(images) :][:size]
        try:
            with _tiling(pipe.vae) if in_tiles else contextlib.nullcontext():
                pixels = family.finish(pipe, family.decode(pipe, batch))
        except torch.OutOfMemoryError:
            if in_tiles:
                raise
            if not free_memory():
                size, in_tiles = max(1, size // 2), size == 1
            continue
        images += list(pipe.image_processor.pt_to_numpy(pixels))
    pipe.maybe_free_model_hooks()  # with model offload the VAE would stay on the device
    if in_tiles:
        warnings.warn("memory is short: images are decoded in tiles, whose seams may be visible", Note, stacklevel=5)
    return images


@contextlib.contextmanager
def _tiling(vae: Any) -> Iterator[None]:
    before = vae.use_tiling
    vae.use_tiling = True
    try:
        yield
    finally:
        vae.use_tiling = before
