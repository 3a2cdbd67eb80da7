"""Class images for prior preservation: generated once by the base model and shared between runs."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from diffusers import StableDiffusionPipeline
from PIL import Image

from hra_diffusion.adapters.linear_map import unsupported_reason
from hra_diffusion.adapters.probe import probe
from hra_diffusion.adapters.quantization import storage
from hra_diffusion.adapters.targets import base_modules
from hra_diffusion.generation.png import read_image, save_png, slug
from hra_diffusion.generation.requests import Request, Settings, complete_settings
from hra_diffusion.generation.sampling import generate_batch
from hra_diffusion.models import families, noise
from hra_diffusion.pipeline import base_name_of
from training.data.buckets import Size
from training.data.captions import class_prompt

CLASS_IMAGE_STEPS: int | None = None
"""Denoising steps of class images; None: the base model's default."""


def load_class_images(
    pipe: StableDiffusionPipeline, class_noun: str, count: int, size: Size, folder: Path, batch_size: int = 8
) -> Iterator[Image.Image]:
    """Yield ``count`` images of the class of a size in pixels, generating those missing in ``folder``.

    The cache key is the base model, a probe of its weights, their storage, the noise process, the class noun and the
    settings. Image k has seed k, so that a larger count reuses the images of a smaller one.
    """
    settings = complete_settings(pipe, Settings(CLASS_IMAGE_STEPS, width=size[0], height=size[1]))
    denoiser = families.denoiser(pipe)
    layers: list[Any] = [layer for _, layer in base_modules(denoiser) if not unsupported_reason(layer)]
    probes = [round(probe(layer.weight.flatten(1)), 2) for layer in (layers[0], layers[-1])]
    process = noise.process_settings(pipe.scheduler)
    key = json.dumps(
        [base_name_of(pipe), probes, storage(denoiser), process, class_prompt(class_noun), asdict(settings)]
    )
    cache = folder / f"{slug(class_noun)}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    paths = [cache / f"{seed:04d}.png" for seed in range(count)]
    images = [_cached(path, (settings.width, settings.height)) for path in paths]
    missing = [seed for seed, image in enumerate(images) if image is None]
    for start in range(0, len(missing), batch_size):
        requests = [Request(class_prompt(class_noun), seed) for seed in missing[start : start + batch_size]]
        for request, image in zip(requests, generate_batch(pipe, requests, settings, batch_size), strict=True):
            save_png(image, paths[request.seed])
            images[request.seed] = image
    yield from cast(list[Image.Image], images)


def _cached(path: Path, size: tuple[int, int]) -> Image.Image | None:
    """Return a cached image, or None if it is missing, damaged, of another size or black.

    Earlier versions saved NaN as black images.
    """
    image = read_image(path)
    return image if image is not None and image.size == size and image.getbbox() is not None else None
