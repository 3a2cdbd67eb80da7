"""Families of base models: the differences between Stable Diffusion 1/2, XL, 3 and FLUX.2, one file each.

A family defines its denoiser and the denoiser's call, the scale of its latents, how prompts are encoded, and how other
programs name its components.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from torch import Tensor, cat, nn, zeros_like

from hra_diffusion.adapters.targets import find_targets
from hra_diffusion.errors import BaseModelError
from hra_diffusion.libraries import only_errors_logged
from hra_diffusion.models.families import flux2, sd, sd3, sdxl
from hra_diffusion.models.families.weighting import hidden_states
from hra_diffusion.models.flow import FlowProcess
from hra_diffusion.models.noise import NoiseProcess
from hra_diffusion.models.prompts import parse_weights, split, without_weights

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Text = dict[str, Tensor]
"""A batch of prompts: token ``ids`` (B, rows, L), or embeddings ``hidden`` (B, L, d) and, for SDXL and SD 3, ``pooled``
(B, p). Training images of SDXL add ``time_ids`` (B, 6), their size conditioning."""


class Family(Protocol):
    """One family of base models."""

    name: str
    pipeline: str
    """Name of the pipeline class in diffusers."""
    denoiser: str
    """Name of the denoiser on the pipeline, and in adapter files."""
    flow_matching: bool
    """Whether it is trained by flow matching (see ``flow``) rather than discrete diffusion (see ``noise``)."""
    encoders: tuple[tuple[str, str], ...]
    """Names of the text encoders on the pipeline, each with that of its tokenizer."""
    optional_encoders: tuple[str, ...]
    """Those without which the denoiser works."""
    trains_text: bool
    """Whether adapters of the text encoders can be trained."""
    prompt_tokens: int | None
    """Tokens of a prompt that are read with all encoders; None if the tokenizer's maximum length says it."""
    kohya_prefixes: tuple[tuple[str, str], ...]
    """Components with the prefix of their keys in kohya's files."""
    embeddings_type: str | None
    """Which hidden states of CLIP text encoders the denoiser takes: a name in compel's ReturnedEmbeddingsType.

    None for other text encoders: prompts are then read as they are written, without weights, and cut if too long."""
    addition_embed_types: tuple[str | None, ...]
    """Values of ``addition_embed_type`` that a denoiser of this family may have."""
    from_pretrained_kwargs: Mapping[str, Any]
    """Keyword arguments for ``from_pretrained`` and ``from_single_file``."""
    original_unet_names: bool
    """Whether kohya's files name the UNet's layers as the original checkpoint does rather than as diffusers does."""

    def encode_prompts(self, pipe: Any, prompts: list[str], negative: list[str] | None) -> dict[str, Any]:
        """Encode prompts, and negative prompts for guidance, as keyword arguments of the pipeline's call."""
        ...

    def tokenize(self, tokenizers: Sequence[Any], captions: Sequence[str]) -> Tensor:
        """Return token ids (N, rows, L), padded and truncated to the length that the text encoders read."""
        ...

    def ids_shape(self, encoders: Sequence[Any]) -> tuple[int, int]:
        """Return rows and length of the token ids of one caption."""
        ...

    def embed(self, encoders: Sequence[nn.Module], ids: Tensor) -> Text:
        """Run the text encoders on token ids (B, rows, L); returns the embeddings that the denoiser takes."""
        ...

    def unused_layers(self, component: str, encoder: Any) -> tuple[str, ...]:
        """Paths of the text encoder's layers whose output the denoiser does not use; training them has no effect."""
        ...

    def noise_process(self, scheduler: Any) -> NoiseProcess | FlowProcess:
        """Return the noise process of a diffusers scheduler. Raises BaseModelError if it is not supported."""
        ...

    def require_scheduler(self, name: str, config: Mapping[str, Any]) -> None:
        """Raise BaseModelError unless a scheduler, by class name and configuration, has this family's process."""
        ...

    def override_noise(self, scheduler: Any, prediction_type: str | None, rescale_zero_snr: bool | None) -> Any:
        """Return a scheduler with another noise process (see ``noise.override``). Raises BaseModelError."""
        ...

    def distillation_sign(self, pipe: Any) -> str:
        """Return why a base model looks distilled for few steps, or ""."""
        ...

    def latent_channels(self, vae: Any) -> int:
        """Return the channels of the latents that the denoiser takes."""
        ...

    def scale(self, vae: Any, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Scale the mean and standard deviation of a VAE's latents (…, channels, height, width) for the denoiser."""
        ...

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Decode latents (N, channels, height, width) to pixels from −1 to 1 (N, 3, height, width).

        They are those that the denoiser takes, or those that the pipeline returns for ``output_type="latent"``.
        """
        ...

    def finish(self, pipe: Any, pixels: Tensor) -> Tensor:
        """Scale decoded pixels to 0 to 1, after the pipeline's own last step."""
        ...

    def predict(self, denoiser: Any, latents: Tensor, times: Tensor, text: Text, pixels: int) -> Tensor:
        """Call the denoiser on noisy latents (B, C, h, w) of images ``pixels`` wide; returns its prediction, as large.

        ``times`` (B,): timesteps as the scheduler numbers them. ``text``: the embeddings.
        """
        ...

    def sampling_defaults(self, pipe: Any) -> tuple[int, float]:
        """Return the default number of denoising steps and the default guidance scale."""
        ...

    def takes_guidance(self, pipe: Any) -> bool:
        """Whether a guidance scale above 1 has an effect."""
        ...

    def latent_multiple(self, denoiser: Any) -> int:
        """Return the number that the latents' height and width must be multiples of."""
        ...


FAMILIES: tuple[Family, ...] = (
    sd.StableDiffusion(), sdxl.StableDiffusionXL(), sd3.StableDiffusion3(), flux2.Flux2Klein()
)  # fmt: skip
COMPONENTS = tuple(
    dict.fromkeys(name for family in FAMILIES for name in (family.denoiser, *(name for name, _ in family.encoders)))
)
"""Names of the models on pipelines that take adapters, the denoiser first."""
VERSIONS: Mapping[Any, str] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""Released versions of Stable Diffusion by the width of their text embeddings (``cross_attention_dim``)."""
TRANSFORMERS: Mapping[Any, str] = {"SD3Transformer2DModel": "sd3", "Flux2Transformer2DModel": "flux2"}
"""Versions of base models by the class of their transformer."""
MAX_SIDE = 4096
"""Largest side of images in pixels."""

_KLEIN, _SD35 = flux2.UNDISTILLED, "stabilityai/stable-diffusion-3.5-medium"
REFUSED: Mapping[str | None, str] = {
    "FluxPipeline": f"FLUX.1 is distilled, for guidance (dev) or for few steps (schnell); use {_KLEIN}",
    "FluxKontextPipeline": f"Kontext edits a given image and is distilled for guidance; use {_KLEIN}",
    "FluxFillPipeline": f"Fill replaces parts of a given image and is distilled for guidance; use {_KLEIN}",
    "Flux2Pipeline": f"FLUX.2 dev is distilled for guidance, with 32 billion parameters; use {_KLEIN}",
    "Flux2KleinKVPipeline": f"this variant edits given images and is distilled for few steps; use {_KLEIN}",
    "Flux2KleinInpaintPipeline": f"it replaces parts of a given image; use {_KLEIN}",
    "StableDiffusion3Img2ImgPipeline": f"it changes a given image; use {_SD35}",
    "StableDiffusion3InpaintPipeline": f"it replaces parts of a given image; use {_SD35}",
    "StableDiffusion3ControlNetPipeline": f"it takes a control image, too; use {_SD35}",
}
"""Pipelines of related base models, with the reason why they can't be used, and the base to use instead."""


def pipeline_class(family: Family) -> Any:
    """Return the pipeline class of a family. Imports diffusers, which takes seconds."""
    with only_errors_logged():
        return getattr(importlib.import_module("diffusers"), family.pipeline)


def by_pipeline_name(name: str | None, source: str) -> Family:
    """Return the family of ``source`` by its pipeline class in diffusers. Raises BaseModelError for any other class."""
    by_name = {family.pipeline: family for family in FAMILIES}
    if name in REFUSED:
        raise BaseModelError(f"{source} is a {name}, which can't be used: {REFUSED[name]}")
    if name not in by_name:
        raise BaseModelError(f"{source} is a {name}; only {' or '.join(by_name)} can be used")
    return by_name[name]


def of(pipe: DiffusionPipeline) -> Family:
    """Return the family of a pipeline; subclasses of its pipeline class count."""
    names = {kind.__name__ for kind in type(pipe).__mro__}  # not the classes: importing all of them takes seconds
    return next((family for family in reversed(FAMILIES) if family.pipeline in names), FAMILIES[0])


def denoiser(pipe: DiffusionPipeline) -> Any:
    """Return the denoiser of a pipeline."""
    return getattr(pipe, of(pipe).denoiser)


def noise_process(pipe: DiffusionPipeline) -> NoiseProcess | FlowProcess:
    """Return the noise process of a pipeline's scheduler. Raises BaseModelError if it is not supported."""
    return of(pipe).noise_process(cast(Any, pipe).scheduler)


def default_side(pipe: DiffusionPipeline) -> int:
    """Return the side in pixels of the images that a base model was trained for."""
    size = getattr(pipe, "default_sample_size", None) or denoiser(pipe).config.sample_size
    return size * cast(Any, pipe).vae_scale_factor


def latent_pixels(pipe: DiffusionPipeline) -> int:
    """Return the side in pixels of a position of the latents that the denoiser takes."""
    return cast(Any, pipe).image_processor.config.vae_scale_factor


def side_limits(pipe: DiffusionPipeline) -> tuple[int, int]:
    """Return the smallest side of images in pixels, of which all sides are multiples, and the largest."""
    config = denoiser(pipe).config
    multiple = latent_pixels(pipe) * of(pipe).latent_multiple(denoiser(pipe))
    return multiple, min(MAX_SIDE, multiple * (config.get("pos_embed_max_size") or MAX_SIDE))


def version(config: Mapping[str, Any]) -> str:
    """Return "sd1", "sd2", "sdxl", "sd3" or "flux2" by a denoiser's configuration; "sd1" for unknown widths."""
    if transformer := TRANSFORMERS.get(config.get("_class_name")):
        return transformer
    if size_conditioned(config):
        return "sdxl"
    return "sd2" if VERSIONS.get(config.get("cross_attention_dim")) == "sd2" else "sd1"


def size_conditioned(config: Mapping[str, Any]) -> bool:
    """Whether a denoiser is conditioned on original size, crop and target size, as SDXL's is, by its configuration."""
    return config.get("addition_embed_type") == "text_time"


def is_plain_prompt(pipe: DiffusionPipeline, prompt: str) -> bool:
    """Whether ``Family.encode_prompts`` can take a prompt: without weights and short enough, if the family has them."""
    if of(pipe).embeddings_type is None:
        return True
    return parse_weights(prompt) == [(prompt, 1.0)] and not split(tokenizer(pipe), prompt)[1]


def cut_off(pipe: DiffusionPipeline, text: str) -> str:
    """Return the words at the end of a text that the text encoders do not read in one window; "" if none."""
    complete = len(_present_encoders(pipe)) == len(of(pipe).encoders)
    return split(tokenizer(pipe), text, of(pipe).prompt_tokens if complete else None)[1]


def encode_weighted(pipe: DiffusionPipeline, prompt: str, negative: str | None) -> dict[str, Any]:
    """Encode a prompt of any length, with weights, and its negative prompt as keyword arguments of the pipeline's call.

    A pooled embedding is computed from the words that fit the encoder, without weights.
    """
    family = of(pipe)
    prompts = [prompt] if negative is None else [prompt, negative]
    start = [split(tokenizer(pipe), without_weights(text))[0] for text in prompts]
    encoded = family.encode_prompts(pipe, start[:1], start[1:] or None)
    parsed = [parse_weights(text) for text in prompts]
    kind = cast(str, family.embeddings_type)
    states = [hidden_states(pipe, *names, parsed, kind) for names in family.encoders]
    hidden = [cat(parts, dim=-1) for parts in zip(*states, strict=True)]
    if negative is not None and not encoded["negative_prompt_embeds"].any():  # zeros for an empty negative prompt
        hidden[1] = zeros_like(hidden[1])
    return encoded | dict(zip(("prompt_embeds", "negative_prompt_embeds"), hidden, strict=False))


def tokenizer(pipe: DiffusionPipeline) -> Any:
    """Return the tokenizer of the last text encoder: SDXL's have the same vocabulary, SD 3's last one reads most."""
    return getattr(pipe, _present_encoders(pipe)[-1][1])


def text_encoders(pipe: DiffusionPipeline) -> list[nn.Module]:
    """Return the text encoders of a pipeline, in the family's order."""
    return [cast(nn.Module, getattr(pipe, name)) for name, _ in _present_encoders(pipe)]


def _present_encoders(pipe: DiffusionPipeline) -> list[tuple[str, str]]:
    return [names for names in of(pipe).encoders if getattr(pipe, names[0]) is not None]


def text_targets(pipe: DiffusionPipeline) -> dict[str, list[str]]:
    """Return the paths of the trainable attention layers of each text encoder, by component."""
    family, targets = of(pipe), {}
    for name, _ in family.encoders:
        encoder = getattr(pipe, name)
        unused = [f"{layer}." for layer in family.unused_layers(name, encoder)]
        targets[name] = [path for path in find_targets(encoder) if not any(layer in path for layer in unused)]
    return targets


def tokenize(pipe: DiffusionPipeline, captions: Sequence[str]) -> Tensor:
    """Return token ids (N, rows, L) of captions, as the family's text encoders read them."""
    family = of(pipe)
    return family.tokenize([getattr(pipe, name) for _, name in _present_encoders(pipe)], captions)


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text without those of its start and end."""
    return tokenizer(text, add_special_tokens=False).input_ids
