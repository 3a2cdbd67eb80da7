"""Image generation in batches. Requests with different adapters share a denoising batch."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hra_diffusion.adapters import activation
from hra_diffusion.adapters.gathered import PreparedAdapter, gathered
from hra_diffusion.adapters.state import ActiveAdapters, Fusion
from hra_diffusion.errors import Note, UserError
from hra_diffusion.generation.captured import CapturedCalls, CudaGraph, captured_denoiser, denoising_with
from hra_diffusion.generation.decoding import decode
from hra_diffusion.generation.png import PNG_KEY, describe
from hra_diffusion.generation.previews import OnStep, step_callback
from hra_diffusion.generation.requests import (
    SIZE_CONDITIONING,
    FullSettings,
    Request,
    Settings,
    complete_settings,
    prompt_notes,
)
from hra_diffusion.generation.schedulers import use_scheduler
from hra_diffusion.generation.subjects import with_subjects
from hra_diffusion.locks import lock_of
from hra_diffusion.models import families, prompts
from hra_diffusion.pipeline import active, active_fusion, components, frozen, require_fusable, strengths_on
from hra_diffusion.threads import sharing_cores

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Embeddings = dict[str, Any]
"""Arguments of a pipeline call that carry the encoded prompts."""
Prepared = Mapping[ActiveAdapters, PreparedAdapter]
"""Adapters that are not attached to the pipeline, by the ``adapters`` of the requests that use them."""


class GenerationError(UserError):
    """An image can't be generated: which one, why, and what to do."""


def generate(
    pipe: StableDiffusionPipeline,
    prompts: str | Sequence[str],
    adapters: Mapping[str, float] | None = None,
    seed: int = 0,
    count: int = 1,
    settings: Settings | None = None,
    negative_prompt: str = "",
    batch_size: int = 8,
    on_step: OnStep | None = None,
    cuda_graph: CudaGraph = "auto",
    fusion: Fusion = "compose",
) -> list[Image.Image]:
    """Generate ``count`` images of each prompt, with seeds ``seed``, ``seed`` + 1, …

    ``adapters`` maps names to strengths: {} for the base model, None for the adapters active on the pipeline, with
    their fusion. ``fusion`` is how several of the given adapters act together (see ``pipeline.activate``).
    Each ``image.info`` holds the settings (see png.describe). For the other arguments see ``generate_batch``.
    """
    if count < 1:
        raise UserError(f"the count of pictures must be at least 1, not {count}")
    prompts = [prompts] if isinstance(prompts, str) else prompts
    with lock_of(pipe):
        if adapters is None:
            adapters, fusion = active(pipe), active_fusion(pipe)
        used = tuple(adapters.items())
        requests = [
            Request(prompt, seed + i, used, negative_prompt, fusion) for prompt in prompts for i in range(count)
        ]
        requests, full = with_subjects(pipe, requests), complete_settings(pipe, settings or Settings())
        images = generate_batch(pipe, requests, full, batch_size, on_step, cuda_graph)
        for image, request in zip(images, requests, strict=True):
            image.info[PNG_KEY] = describe(pipe, request, full)
    return images


def generate_batch(
    pipe: StableDiffusionPipeline,
    requests: Sequence[Request],
    settings: Settings | FullSettings | None = None,
    batch_size: int = 8,
    on_step: OnStep | None = None,
    cuda_graph: CudaGraph = "auto",
    prepared: Prepared | None = None,
) -> list[Image.Image]:
    """Generate the requested images and return them in order.

    An image depends only on its request and the settings (up to rounding), not on the rest of the batch: its noise is
    sampled on the CPU from its seed. Prompts may be of any length and have weights (see prompts.parse_weights); a
    PromptWarning names those that are cut or encoded in several windows. ``{subject}`` in a prompt stands for the
    subject of the request's first adapter.

    If memory runs out, smaller batches are denoised or decoded. The pipeline's lock (locks.lock_of) is held: threads
    that share a pipeline generate one after another.

    Args:
        batch_size: images denoised at once, at most.
        on_step: called after every denoising step of every batch; an exception it raises ends the generation.
        cuda_graph: "auto" captures the denoiser's call on a CUDA device (see captured.CapturedCalls); "off" does not.
        prepared: the requests' adapters, each one request has at most one of, if they are not attached to the pipeline
            (see adapters.gathered).

    Raises UserError for invalid settings, adapters that are not loaded and subjects that are not known, and
    GenerationError if an image is NaN.
    """
    with lock_of(pipe):
        full, requests = complete_settings(pipe, settings or Settings()), with_subjects(pipe, requests)
        if batch_size < 1:
            raise UserError(f"the batch size must be at least 1, not {batch_size}")
        if prepared is None:
            for request in {(request.adapters, request.fusion): request for request in requests}.values():
                require_fusable(pipe, dict(request.adapters), request.fusion)
        _warn(pipe, requests, full)
        with sharing_cores(pipe.device.type), use_scheduler(pipe, full.scheduler), torch.no_grad(), frozen(pipe):
            return _generate(pipe, requests, full, batch_size, on_step, captured_denoiser(pipe, cuda_graph), prepared)


def _generate(
    pipe: StableDiffusionPipeline,
    requests: Sequence[Request],
    settings: FullSettings,
    batch_size: int,
    on_step: OnStep | None,
    captured: CapturedCalls | None,
    prepared: Prepared | None,
) -> list[Image.Image]:
    images: dict[int, Image.Image] = {}
    embeddings = _encode_weighted(pipe, requests, settings, prepared)
    free_memory = captured.release if captured else lambda: False
    lengths = [own["prompt_embeds"].shape[1] if own else 0 for own in embeddings]
    together = [(length, request.fusion) for length, request in zip(lengths, requests, strict=True)]
    order = sorted(range(len(requests)), key=lambda i: (together[i], requests[i].adapters))
    while order:
        chunk = [i for i in order[:batch_size] if together[i] == together[order[0]]]
        batch, callback = [requests[i] for i in chunk], step_callback(on_step, tuple(chunk), settings)
        try:
            latents = _denoise(pipe, batch, [embeddings[i] for i in chunk], settings, callback, captured, prepared)
        except torch.OutOfMemoryError:
            if not free_memory():
                if len(chunk) == 1:
                    raise
                batch_size = len(chunk) // 2  # slower, the same images
            continue
        pixels = decode(pipe, latents, free_memory)
        _require_finite(pipe, batch, pixels)
        images |= zip(chunk, pipe.image_processor.numpy_to_pil(np.stack(pixels)), strict=True)
        order = order[len(chunk) :]
    return [images[i] for i in range(len(requests))]


def _warn(pipe: StableDiffusionPipeline, requests: Sequence[Request], settings: FullSettings) -> None:
    """Issue warnings that point at the caller of ``generate`` or ``compare``."""
    if settings.scheduler == "dpm++-karras" and families.noise_process(pipe).zero_snr:
        warnings.warn(
            "dpm++-karras spends most of its steps on pure noise with this base, which has zero terminal SNR; dpm++ "
            "gives better pictures",
            Note,
            stacklevel=4,
        )
    if settings.guidance_scale <= 1 and any(request.negative_prompt for request in requests):
        warnings.warn("without guidance (a scale above 1) the negative prompt has no effect", Note, stacklevel=4)
    for note in prompt_notes(pipe, requests):
        warnings.warn(note, prompts.PromptWarning, stacklevel=4)


def _encode_weighted(
    pipe: StableDiffusionPipeline, requests: Sequence[Request], settings: FullSettings, prepared: Prepared | None
) -> list[Embeddings | None]:
    """Encode each request whose prompts are long or have weights, with its own adapters; None for all other requests.

    The others are encoded together, one batch at a time.
    """

    @functools.cache
    def encode(prompt: str, negative: str, adapters: ActiveAdapters, fusion: Fusion) -> Embeddings | None:
        if families.is_plain_prompt(pipe, prompt) and families.is_plain_prompt(pipe, negative):
            return None
        with _batch_adapters(pipe, [(adapters, 1)], fusion, prepared):
            return families.encode_weighted(pipe, prompt, negative if settings.guidance_scale > 1 else None)

    return [encode(request.prompt, request.negative_prompt, request.adapters, request.fusion) for request in requests]


def _denoise(
    pipe: StableDiffusionPipeline,
    requests: list[Request],
    embeddings: list[Embeddings | None],
    settings: FullSettings,
    callback: Any,
    captured: CapturedCalls | None,
    prepared: Prepared | None,
) -> Tensor:
    """Denoise the latents of one batch, sorted by adapters, with one fusion and embeddings of one length."""
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]
    groups = [(adapters, sum(1 for _ in same)) for adapters, same in groupby(request.adapters for request in requests)]
    fusion = requests[0].fusion
    with _batch_adapters(pipe, groups, fusion, prepared), denoising_with(captured, pipe, (tuple(groups), fusion)):
        output = pipe(
            **_batch_embeddings(pipe, requests, embeddings, settings),
            latents=_initial_noise(pipe, generators, settings).to(pipe.device, families.denoiser(pipe).dtype),
            generator=generators,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            width=settings.width,
            height=settings.height,
            **{name: value for name in SIZE_CONDITIONING if (value := getattr(settings, name)) is not None},
            callback_on_step_end=callback,
            output_type="latent",
        )
    return cast(Any, output).images


def _initial_noise(
    pipe: StableDiffusionPipeline, generators: Sequence[torch.Generator], settings: FullSettings
) -> Tensor:
    """Sample latents (N, channels, height, width), each from its own generator."""
    size = (side // families.latent_pixels(pipe) for side in (settings.height, settings.width))
    shape = (1, families.denoiser(pipe).config.in_channels, *size)
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators])


def _batch_embeddings(
    pipe: StableDiffusionPipeline,
    requests: Sequence[Request],
    embeddings: Sequence[Embeddings | None],
    settings: FullSettings,
) -> Embeddings:
    if encoded := [own for own in embeddings if own]:
        return {key: torch.cat([own[key] for own in encoded]) for key, part in encoded[0].items() if part is not None}
    negative = [request.negative_prompt for request in requests] if settings.guidance_scale > 1 else None
    return families.of(pipe).encode_prompts(pipe, [request.prompt for request in requests], negative)


def _require_finite(pipe: StableDiffusionPipeline, requests: Sequence[Request], pixels: Sequence[np.ndarray]) -> None:
    """Raise GenerationError for an image (height, width, 3) with NaN, which would be saved as black."""
    for request, image in zip(requests, pixels, strict=True):
        if np.isfinite(image).all():
            continue
        remedy = "weights of the base or an adapter are damaged, or a strength is too high: generate without adapters"
        if torch.float16 in (families.denoiser(pipe).dtype, pipe.vae.dtype):
            remedy = "values overflow in float16, mostly in the VAE: use --dtype float32 or bfloat16"
        raise GenerationError(f"the picture of {request.prompt!r} with seed {request.seed} came out as NaN; {remedy}")


@contextlib.contextmanager
def _batch_adapters(
    pipe: StableDiffusionPipeline,
    groups: Sequence[tuple[ActiveAdapters, int]],
    fusion: Fusion,
    prepared: Prepared | None,
) -> Iterator[None]:
    """Give contiguous groups of each batch, (adapters, size), their own adapters on every component of the pipeline."""
    with contextlib.ExitStack() as stack:
        for component, model in components(pipe).items():
            attached = [(strengths_on(model, dict(own)), count) for own, count in groups]
            if prepared is not None:
                attached = [({}, 1)]
                samples = [prepared[own] if own else None for own, count in groups for _ in range(count)]
                stack.enter_context(gathered(model, component, samples))
            stack.enter_context(activation.batch_adapters(model, attached, fusion))
        yield
