"""Requests -> pictures with their settings inside. Generation and comparison share this one denoising path."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor, nn

from hra_diffusion import attachment, families, prompts
from hra_diffusion.errors import UserError
from hra_diffusion.files import atomic_path
from hra_diffusion.layer import Mix
from hra_diffusion.pipeline import TOYBOX, active, components, name_of, require_loaded, wide_enough

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": False}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
}
GUIDANCE_SCALE = {TOYBOX: 3.0}
"""Guidance scales for bases that want another than their family's."""
PNG_KEY = "hra_diffusion"


@dataclass(frozen=True)
class Settings:
    """What all pictures of one call share. ``guidance_scale`` and the sizes (pixels) default to the base's own."""

    steps: int = 25
    guidance_scale: float | None = None
    scheduler: str = "dpm++"
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True)
class FullSettings:
    """Settings with nothing left open, as pictures carry them."""

    steps: int
    guidance_scale: float
    scheduler: str
    width: int
    height: int


@dataclass(frozen=True)
class Request:
    """One picture. ``adapters``: (name, strength) in order, empty for the base. The seed decides its noise alone."""

    prompt: str
    seed: int
    adapters: Mix = ()
    negative_prompt: str = ""

    def __post_init__(self):
        if not 0 <= self.seed < 2**63:
            raise UserError(f"a seed must be from 0 to 2^63 − 1, not {self.seed}")


@dataclass(frozen=True)
class DenoisingStep:
    """One step of a batch is done: ``step`` of ``steps``, for the requests at the indices ``which``."""

    step: int
    steps: int
    which: tuple[int, ...]
    decode: Callable[[], list[Image.Image]]
    """The pictures of ``which`` as they are now, still noisy. Costs a pass of the VAE."""


OnStep = Callable[[DenoisingStep], None]


def draw(
    pipe: StableDiffusionPipeline,
    requests: Sequence[Request],
    settings: Settings | FullSettings | None = None,
    batch_size: int = 8,
    on_step: OnStep | None = None,
) -> list[Image.Image]:
    """The requested pictures, in order. Requests with different adapters share a denoising batch.

    A picture depends on its own request and the settings only (up to float rounding), not on what is drawn beside it:
    its noise is drawn on the CPU from its seed. ``on_step`` is told of every denoising step; what it raises ends the
    drawing. Prompts may be of any length and have weights (see prompts.fragments); what may surprise is warned of.
    Raises ValueError for an adapter that is not loaded, an unknown scheduler, a size the base can't draw.
    """
    full = complete(pipe, settings or Settings())
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, not {batch_size}")
    require_loaded(pipe, {name for request in requests for name, _ in request.adapters})
    for note in prompt_notes(pipe, requests):
        warnings.warn(note, prompts.PromptWarning, stacklevel=3)  # the caller of generate and compare
    pictures: dict[int, Image.Image] = {}
    with _scheduler(pipe, full.scheduler), torch.no_grad():
        texts = _encode_weighted(pipe, requests, full)
        lengths = [text["prompt_embeds"].shape[1] if text else 0 for text in texts]
        order = sorted(range(len(requests)), key=lambda i: (lengths[i], requests[i].adapters))
        while order:
            chunk = [i for i in order[:batch_size] if lengths[i] == lengths[order[0]]]
            try:
                watch = _watch(on_step, tuple(chunk), full.steps)
                drawn = _draw_batch(pipe, [requests[i] for i in chunk], [texts[i] for i in chunk], full, watch)
            except torch.OutOfMemoryError:
                if len(chunk) == 1:
                    raise
                batch_size = len(chunk) // 2  # fewer at once: slower, the same pictures
                continue
            pictures |= zip(chunk, drawn, strict=True)
            order = order[len(chunk) :]
    return [pictures[i] for i in range(len(requests))]


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
) -> list[Image.Image]:
    """``count`` pictures of each prompt, with seeds ``seed``, ``seed`` + 1, …; settings are in each ``image.info``.

    ``adapters``: strengths by name, empty for the base; None takes those active on the pipeline.
    """
    if count < 1:
        raise UserError(f"the count of pictures must be at least 1, not {count}")
    mix = tuple((active(pipe) if adapters is None else adapters).items())
    prompts = [prompts] if isinstance(prompts, str) else prompts
    requests = [Request(prompt, seed + i, mix, negative_prompt) for prompt in prompts for i in range(count)]
    pictures = draw(pipe, requests, settings, batch_size, on_step)
    for picture, request in zip(pictures, requests, strict=True):
        picture.info[PNG_KEY] = describe(pipe, request, complete(pipe, settings or Settings()))
    return pictures


def describe(pipe: StableDiffusionPipeline, request: Request, settings: FullSettings) -> dict[str, Any]:
    """Everything that made a picture, ready for JSON."""
    made = {"base": name_of(pipe), "dtype": str(pipe.dtype).removeprefix("torch."), **dataclasses.asdict(request)}
    notes = prompt_notes(pipe, [request])
    return (
        made | {"adapters": dict(request.adapters)} | dataclasses.asdict(settings) | ({"notes": notes} if notes else {})
    )


def prompt_notes(pipe: StableDiffusionPipeline, requests: Sequence[Request]) -> list[str]:
    """What the author of the prompts should know (see prompts.notes), each note once."""
    texts = dict.fromkeys(text for request in requests for text in (request.prompt, request.negative_prompt))
    tokenizer = families.tokenizer(pipe)
    return list(dict.fromkeys(note for text in texts for note in prompts.notes(tokenizer, text)))


def save_png(image: Image.Image, path: Path) -> Path:
    """Write a PNG with the settings of ``image.info`` in it, atomically; returns ``path``.

    They are stored as JSON under "hra_diffusion", and under "parameters" as other tools read them.
    """
    info = PngImagePlugin.PngInfo()
    if made := image.info.get(PNG_KEY):
        info.add_itxt(PNG_KEY, json.dumps(made, ensure_ascii=False))
        info.add_itxt("parameters", _parameters(made))
    with atomic_path(path) as temporary:
        image.save(temporary, "PNG", pnginfo=info)
    return path


def read_png(path: Path) -> dict[str, Any]:
    """The settings inside a picture of ours. Raises ValueError if it has none."""
    try:
        with Image.open(path) as image:
            return json.loads(image.info[PNG_KEY])
    except (OSError, KeyError, ValueError):
        raise UserError(f"{path.name} holds no settings of hra-diffusion") from None


def with_subject(prompt: str, subject: str, class_noun: str = "") -> str:
    """The prompt with the subject in it: for ``{subject}``, for the first bare class noun, or else before it all.

    A prompt that has the subject already stays as it is: ("a dog in the snow", "sks dog", "dog") is "a sks dog in the
    snow".
    """
    if "{subject}" in prompt or not subject:
        return prompt.replace("{subject}", subject)
    if re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt, re.IGNORECASE):  # no \b: it may be "[V] dog"
        return prompt
    if class_noun and (found := re.search(rf"\b{re.escape(class_noun)}\b", prompt, re.IGNORECASE)):
        return prompt[: found.start()] + subject + prompt[found.end() :]
    return f"{subject}, {prompt}" if prompt.strip() else subject


def slug(text: str, length: int = 40) -> str:
    """Text as a part of a file name: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].strip("-") or "picture"


def complete(pipe: StableDiffusionPipeline, settings: Settings | FullSettings) -> FullSettings:
    """The settings with the base's own size and guidance scale where none are given; checked."""
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    own_guidance = GUIDANCE_SCALE.get(name_of(pipe), families.of(pipe).guidance_scale)
    full = FullSettings(
        settings.steps,
        own_guidance if settings.guidance_scale is None else settings.guidance_scale,
        settings.scheduler,
        settings.width or side,
        settings.height or side,
    )
    if settings.scheduler not in SCHEDULERS:
        raise UserError(f"unknown scheduler {settings.scheduler!r}; use one of {', '.join(SCHEDULERS)}")
    if not 1 <= settings.steps <= 1000:
        raise UserError(f"steps must be from 1 to 1000, not {settings.steps}")
    multiple = pipe.vae_scale_factor * 2 ** (len(pipe.unet.config.down_block_types) - 1)
    for side in (full.width, full.height):
        if side % multiple or not multiple <= side <= 4096:
            raise UserError(f"width and height must be multiples of {multiple} up to 4096 for this base, not {side}")
    return full


def _watch(on_step: OnStep | None, which: tuple[int, ...], steps: int) -> Any:
    """``on_step`` as the pipeline calls it."""
    if on_step is None:
        return None

    def tell(pipe: StableDiffusionPipeline, number: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict:
        latents = tensors["latents"].detach().clone()
        on_step(DenoisingStep(number + 1, steps, which, lambda: _decode(pipe, latents)))
        return {}

    return tell


def _decode(pipe: StableDiffusionPipeline, latents: Tensor) -> list[Image.Image]:
    with torch.no_grad(), wide_enough(pipe.vae) as vae:
        images = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
    return cast(list[Image.Image], pipe.image_processor.postprocess(images.float().cpu(), "pil"))


def _encode_weighted(
    pipe: StableDiffusionPipeline, requests: Sequence[Request], settings: FullSettings
) -> list[dict[str, Any] | None]:
    """The text of each request that is long or has weights, encoded on its own, with its own adapters; None for others.

    The others are encoded together, as their batch is drawn.
    """

    @functools.cache
    def encode(prompt: str, negative: str, mix: Mix) -> dict[str, Any] | None:
        if families.reads_as_is(pipe, prompt) and families.reads_as_is(pipe, negative):
            return None
        with _routed(pipe, [(mix, 1)]):
            return families.encode_weighted(pipe, prompt, negative if settings.guidance_scale > 1 else None)

    return [encode(request.prompt, request.negative_prompt, request.adapters) for request in requests]


def _draw_batch(
    pipe: StableDiffusionPipeline,
    requests: list[Request],
    texts: list[dict[str, Any] | None],
    settings: FullSettings,
    watch: Any,
) -> list[Image.Image]:
    generators = [torch.Generator().manual_seed(request.seed) for request in requests]
    size = settings.height // pipe.vae_scale_factor, settings.width // pipe.vae_scale_factor
    shape = (1, pipe.unet.config.in_channels, *size)
    latents = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    groups = [(mix, sum(1 for _ in same)) for mix, same in groupby(request.adapters for request in requests)]
    text: dict[str, Any]
    with _routed(pipe, groups):
        encoded = [text for text in texts if text]
        if encoded:
            text = {
                key: torch.cat([own[key] for own in encoded]) for key, part in encoded[0].items() if part is not None
            }
        else:
            negative = [request.negative_prompt for request in requests] if settings.guidance_scale > 1 else None
            text = families.of(pipe).encode(pipe, [request.prompt for request in requests], negative)
        output = pipe(
            **text,
            latents=latents.to(pipe.device, pipe.unet.dtype),
            generator=generators,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            width=settings.width,
            height=settings.height,
            callback_on_step_end=watch,
        )
    return cast("StableDiffusionPipelineOutput", output).images  # type: ignore[return-value]


@contextlib.contextmanager
def _routed(pipe: StableDiffusionPipeline, groups: Sequence[tuple[Mix, int]]) -> Iterator[None]:
    """Within the block contiguous groups of each batch have their own adapters, on every component (see attachment)."""
    with contextlib.ExitStack() as stack:
        for model in components(pipe).values():
            stack.enter_context(attachment.routed(model, [(_here(model, mix), count) for mix, count in groups]))
        yield


def _here(model: nn.Module, mix: Mix) -> dict[str, float]:
    names = attachment.adapter_names(model)
    return {name: strength for name, strength in mix if name in names}


@contextlib.contextmanager
def _scheduler(pipe: StableDiffusionPipeline, name: str) -> Iterator[None]:
    import diffusers

    kind, options = SCHEDULERS[name]
    before = pipe.scheduler
    pipe.scheduler = getattr(diffusers, kind).from_config(before.config, **options)
    try:
        yield
    finally:
        pipe.scheduler = before


def _parameters(made: Mapping[str, Any]) -> str:
    adapters = ", ".join(f"{name}:{strength:g}" for name, strength in made["adapters"].items())
    return (
        f"{made['prompt']}\nNegative prompt: {made['negative_prompt']}\n"
        f"Steps: {made['steps']}, Sampler: {made['scheduler']}, CFG scale: {made['guidance_scale']:g}, "
        f"Seed: {made['seed']}, Size: {made['width']}x{made['height']}, Model: {made['base']}, Adapters: {adapters}"
    )
