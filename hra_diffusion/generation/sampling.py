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

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor, nn

from hra_diffusion.adapters import attachment
from hra_diffusion.adapters.layer import ActiveAdapters
from hra_diffusion.errors import Note, UserError
from hra_diffusion.files import atomic_path
from hra_diffusion.models import families, noise, prompts
from hra_diffusion.models.devices import vae_upcast
from hra_diffusion.models.sources import TOYBOX
from hra_diffusion.pipeline import active, base_name_of, components, require_loaded
from hra_diffusion.threads import share_cores, sharing_cores

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": False}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
}


class PictureError(UserError):
    """A picture can't be drawn: which one, why, and what to do."""


GUIDANCE_SCALE = {TOYBOX: 3.0}
"""Guidance scales for bases that want another than their family's."""
PNG_KEY = "hra_diffusion"
SIZE_CONDITIONING = ("original_size", "crops_coords_top_left", "target_size")
Pair = tuple[int, int]


@dataclass(frozen=True)
class Settings:
    """What all pictures of one call share. ``guidance_scale`` and the sizes (pixels) default to the base's own.

    Stable Diffusion XL's size conditioning, named and ordered as in diffusers' pipeline: ``original_size`` and
    ``target_size`` (height, width) default to the picture's size, ``crops_coords_top_left`` (top, left) to (0, 0).
    """

    steps: int = 25
    guidance_scale: float | None = None
    scheduler: str = "dpm++"
    width: int | None = None
    height: int | None = None
    original_size: Pair | None = None
    crops_coords_top_left: Pair | None = None
    target_size: Pair | None = None


@dataclass(frozen=True)
class FullSettings:
    """Settings with nothing left open, as pictures carry them; None for what the base is not conditioned on."""

    steps: int
    guidance_scale: float
    scheduler: str
    width: int
    height: int
    original_size: Pair | None = None
    crops_coords_top_left: Pair | None = None
    target_size: Pair | None = None


@dataclass(frozen=True)
class Request:
    """One picture. ``adapters``: (name, strength) in order, empty for the base. The seed decides its noise alone."""

    prompt: str
    seed: int
    adapters: ActiveAdapters = ()
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


def generate_batch(
    pipe: StableDiffusionPipeline,
    requests: Sequence[Request],
    settings: Settings | FullSettings | None = None,
    batch_size: int = 8,
    on_step: OnStep | None = None,
) -> list[Image.Image]:
    """The requested pictures, in order. Requests with different adapters share a denoising batch.

    A picture depends on its own request and the settings only (up to float rounding), not on what is drawn beside it:
    its noise is drawn on the CPU from its seed. ``on_step`` is told of every denoising step; what it raises ends the
    drawing. Prompts may be of any length and have weights (see prompts.parse_weights); those cut or
    encoded in several windows are named by a PromptWarning.
    Raises ValueError for an adapter that is not loaded, an unknown scheduler, a size the base can't draw, and
    PictureError for a picture that comes out as NaN.
    """
    full = complete(pipe, settings or Settings())
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, not {batch_size}")
    require_loaded(pipe, {name for request in requests for name, _ in request.adapters})
    if full.scheduler == "dpm++-karras" and noise.of(pipe.scheduler).zero_snr:
        warnings.warn(
            "dpm++-karras spends most of its steps on pure noise with this base, which has zero terminal SNR; dpm++ "
            "draws better pictures",
            Note,
            stacklevel=3,
        )
    for note in prompt_notes(pipe, requests):
        warnings.warn(note, prompts.PromptWarning, stacklevel=3)  # the caller of generate and compare
    pictures: dict[int, Image.Image] = {}
    with sharing_cores(pipe.device.type), _scheduler(pipe, full.scheduler), torch.no_grad():
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
    pictures = generate_batch(pipe, requests, settings, batch_size, on_step)
    for picture, request in zip(pictures, requests, strict=True):
        picture.info[PNG_KEY] = describe(pipe, request, complete(pipe, settings or Settings()))
    return pictures


def describe(pipe: StableDiffusionPipeline, request: Request, settings: FullSettings) -> dict[str, Any]:
    """Everything that made a picture, ready for JSON."""
    made = {"base": base_name_of(pipe), "dtype": str(pipe.dtype).removeprefix("torch."), **dataclasses.asdict(request)}
    known = {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}
    notes = prompt_notes(pipe, [request])
    return made | {"adapters": dict(request.adapters)} | known | ({"notes": notes} if notes else {})


def prompt_notes(pipe: StableDiffusionPipeline, requests: Sequence[Request]) -> list[str]:
    """What the author of the prompts should know (see prompts.prompt_notes), each note once."""
    texts = dict.fromkeys(text for request in requests for text in (request.prompt, request.negative_prompt))
    tokenizer = families.tokenizer(pipe)
    return list(dict.fromkeys(note for text in texts for note in prompts.prompt_notes(tokenizer, text)))


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


def read_image(path: Path) -> Image.Image | None:
    """A picture file as RGB; None if it is missing or damaged."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception:  # a damaged file makes Pillow's decoders fail in any way there is
        return None


def mentions(prompt: str, words: str) -> bool:
    """Whether the words are in the prompt as whole words, in upper or lower case."""
    return bool(re.search(rf"(?<!\w){re.escape(words)}(?!\w)", prompt, re.IGNORECASE))  # no \b: it may be "[V] dog"


def with_subject(prompt: str, subject: str, class_noun: str = "") -> str:
    """The prompt with the subject in it: for ``{subject}``, for the first bare class noun, or else before it all.

    A prompt that has the subject already stays as it is: ("a dog in the snow", "sks dog", "dog") is "a sks dog in the
    snow".
    """
    if "{subject}" in prompt or not subject:
        return prompt.replace("{subject}", subject)
    if mentions(prompt, subject):
        return prompt
    if class_noun and (found := re.search(rf"\b{re.escape(class_noun)}\b", prompt, re.IGNORECASE)):
        return prompt[: found.start()] + subject + prompt[found.end() :]
    return f"{subject}, {prompt}" if prompt.strip() else subject


def slug(text: str, length: int = 40) -> str:
    """Text as a part of a file name: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].strip("-") or "picture"


def complete(pipe: StableDiffusionPipeline, settings: Settings | FullSettings) -> FullSettings:
    """The settings with the base's own size and guidance scale where none are given; checked, and the base's noise
    process with them."""
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    own_guidance = GUIDANCE_SCALE.get(base_name_of(pipe), families.of(pipe).guidance_scale)
    full = FullSettings(
        settings.steps,
        own_guidance if settings.guidance_scale is None else settings.guidance_scale,
        settings.scheduler,
        settings.width or side,
        settings.height or side,
        **_size_conditioning(pipe, settings, (settings.height or side, settings.width or side)),
    )
    if settings.scheduler not in SCHEDULERS:
        raise UserError(f"unknown scheduler {settings.scheduler!r}; use one of {', '.join(SCHEDULERS)}")
    if noise.of(pipe.scheduler).prediction_type == "sample" and settings.scheduler == "euler-a":
        raise UserError("euler-a can't draw with a base that predicts the sample; use another scheduler, as euler")
    if not 1 <= settings.steps <= 1000:
        raise UserError(f"steps must be from 1 to 1000, not {settings.steps}")
    multiple = pipe.vae_scale_factor * 2 ** (len(pipe.unet.config.down_block_types) - 1)
    for side in (full.width, full.height):
        if side % multiple or not multiple <= side <= 4096:
            raise UserError(f"width and height must be multiples of {multiple} up to 4096 for this base, not {side}")
    return full


def _size_conditioning(pipe: StableDiffusionPipeline, settings: Settings | FullSettings, size: Pair) -> dict[str, Pair]:
    """The size conditioning with diffusers' defaults for a picture of this size (height, width); {} for other bases."""
    given = {name: tuple(value) for name in SIZE_CONDITIONING if (value := getattr(settings, name)) is not None}
    if not families.size_conditioned(pipe.unet.config):
        if given:
            raise UserError(f"{base_name_of(pipe)} is not conditioned on sizes; only SDXL takes {', '.join(given)}")
        return {}
    for name, numbers in given.items():
        least = 0 if name == "crops_coords_top_left" else 1
        if min(numbers) < least:
            raise UserError(f"{name} must be two numbers from {least} up, not {numbers[0]} and {numbers[1]}")
    return {"original_size": size, "crops_coords_top_left": (0, 0), "target_size": size} | given


def _watch(on_step: OnStep | None, which: tuple[int, ...], steps: int) -> Any:
    """The pipeline's callback after each denoising step: follows changes of the shared cores and calls ``on_step``."""

    def after_step(pipe: StableDiffusionPipeline, number: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict:
        share_cores()
        if on_step is not None:
            latents = tensors["latents"].detach().clone()
            on_step(DenoisingStep(number + 1, steps, which, lambda: _decode(pipe, latents)))
        return {}

    return after_step


def _decode(pipe: StableDiffusionPipeline, latents: Tensor) -> list[Image.Image]:
    with torch.no_grad(), vae_upcast(pipe.vae) as vae:
        images = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
    return cast(list[Image.Image], pipe.image_processor.postprocess(images.float().cpu(), "pil"))


def _encode_weighted(
    pipe: StableDiffusionPipeline, requests: Sequence[Request], settings: FullSettings
) -> list[dict[str, Any] | None]:
    """The text of each request that is long or has weights, encoded on its own, with its own adapters; None for others.

    The others are encoded together, as their batch is drawn.
    """

    @functools.cache
    def encode(prompt: str, negative: str, mix: ActiveAdapters) -> dict[str, Any] | None:
        if families.is_plain_prompt(pipe, prompt) and families.is_plain_prompt(pipe, negative):
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
            text = families.of(pipe).encode_prompts(pipe, [request.prompt for request in requests], negative)
        output = pipe(
            **text,
            latents=latents.to(pipe.device, pipe.unet.dtype),
            generator=generators,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            width=settings.width,
            height=settings.height,
            **{name: value for name in SIZE_CONDITIONING if (value := getattr(settings, name)) is not None},
            callback_on_step_end=watch,
            output_type="pt",
        )
    pixels = pipe.image_processor.pt_to_numpy(cast(Any, output).images)
    _require_finite(pipe, requests, pixels)
    return cast(list[Image.Image], pipe.image_processor.numpy_to_pil(pixels))


def _require_finite(pipe: StableDiffusionPipeline, requests: list[Request], pixels: np.ndarray) -> None:
    """Raises PictureError for a picture (height, width, 3) with NaN in it, which would be saved as black."""
    for request, picture in zip(requests, pixels, strict=True):
        if np.isfinite(picture).all():
            continue
        remedy = "the weights of the base or an adapter are damaged, or a strength is too high: draw without adapters"
        if torch.float16 in (pipe.unet.dtype, pipe.vae.dtype):
            remedy = "values overflow in float16, mostly in the VAE: use --dtype float32 or bfloat16"
        raise PictureError(f"the picture of {request.prompt!r} with seed {request.seed} came out as NaN; {remedy}")


@contextlib.contextmanager
def _routed(pipe: StableDiffusionPipeline, groups: Sequence[tuple[ActiveAdapters, int]]) -> Iterator[None]:
    """Within the block contiguous groups of each batch have their own adapters, on every component (see attachment)."""
    with contextlib.ExitStack() as stack:
        for model in components(pipe).values():
            stack.enter_context(attachment.batch_adapters(model, [(_here(model, mix), count) for mix, count in groups]))
        yield


def _here(model: nn.Module, mix: ActiveAdapters) -> dict[str, float]:
    names = attachment.adapter_names(model)
    return {name: strength for name, strength in mix if name in names}


@contextlib.contextmanager
def _scheduler(pipe: StableDiffusionPipeline, name: str) -> Iterator[None]:
    """Within the block the pipeline draws by this scheduler, set up for the base's noise process and nothing else."""
    kind, options = SCHEDULERS[name]
    before = pipe.scheduler
    pipe.scheduler = noise.of(before).scheduler(kind, **options)
    # diffusers looks the first timestep up by its value, and takes the second of two equal ones, as Karras sigmas have
    # near pure noise: its last step is then past the end
    pipe.scheduler.index_for_timestep = lambda timestep, schedule_timesteps=None: 0
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
