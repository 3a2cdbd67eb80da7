"""Families of base models: the differences between Stable Diffusion 1/2 and XL, one file each.

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
from hra_diffusion.models.families import sd, sdxl
from hra_diffusion.models.families.weighting import hidden_states
from hra_diffusion.models.noise import NoiseProcess
from hra_diffusion.models.prompts import parse_weights, split, without_weights

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Text = dict[str, Tensor]
"""A batch of prompts: token ``ids`` (B, rows, L), or embeddings ``hidden`` (B, L, d) and, for SDXL, ``pooled``
(B, p). Training images add ``time_ids`` (B, 6), their size conditioning."""


class Family(Protocol):
    """One family of base models."""

    name: str
    pipeline: str
    """Name of the pipeline class in diffusers."""
    denoiser: str
    """Name of the denoiser on the pipeline, and in adapter files."""
    encoders: tuple[tuple[str, str], ...]
    """Names of the text encoders on the pipeline, each with that of its tokenizer."""
    kohya_prefixes: tuple[tuple[str, str], ...]
    """Components with the prefix of their keys in kohya's files."""
    embeddings_type: str
    """Which hidden states of the text encoders the denoiser takes: a name in compel's ReturnedEmbeddingsType."""
    guidance_scale: float
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

    def noise_process(self, scheduler: Any) -> NoiseProcess:
        """Return the noise process of a diffusers scheduler. Raises BaseModelError if it is not supported."""
        ...

    def scale(self, vae: Any, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Scale the mean and standard deviation of a VAE's latents (…, channels, height, width) for the denoiser."""
        ...

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Decode latents (N, channels, height, width) to pixels from −1 to 1 (N, 3, height, width)."""
        ...

    def finish(self, pipe: Any, pixels: Tensor) -> Tensor:
        """Scale decoded pixels to 0 to 1, after the pipeline's own last step."""
        ...

    def predict(self, denoiser: Any, latents: Tensor, times: Tensor, text: Text, pixels: int) -> Tensor:
        """Call the denoiser on noisy latents (B, C, h, w) of images ``pixels`` wide; returns its prediction, as large.

        ``times`` (B,): timesteps as the scheduler numbers them. ``text``: the embeddings.
        """
        ...

    def latent_multiple(self, denoiser: Any) -> int:
        """Return the number that the latents' height and width must be multiples of."""
        ...


FAMILIES: tuple[Family, ...] = (sd.StableDiffusion(), sdxl.StableDiffusionXL())
COMPONENTS = tuple(
    dict.fromkeys(name for family in FAMILIES for name in (family.denoiser, *(name for name, _ in family.encoders)))
)
"""Names of the models on pipelines that take adapters, the denoiser first."""
VERSIONS: Mapping[Any, str] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""Released versions of Stable Diffusion by the width of their text embeddings (``cross_attention_dim``)."""


def pipeline_class(family: Family) -> Any:
    """Return the pipeline class of a family. Imports diffusers, which takes seconds."""
    return getattr(importlib.import_module("diffusers"), family.pipeline)


def by_pipeline_name(name: str | None, source: str) -> Family:
    """Return the family of ``source`` by its pipeline class in diffusers. Raises BaseModelError for any other class."""
    by_name = {family.pipeline: family for family in FAMILIES}
    if name not in by_name:
        raise BaseModelError(f"{source} is a {name}; only {' or '.join(by_name)} can be used")
    return by_name[name]


def of(pipe: DiffusionPipeline) -> Family:
    """Return the family of a pipeline; subclasses of its pipeline class count."""
    return next((family for family in reversed(FAMILIES) if isinstance(pipe, pipeline_class(family))), FAMILIES[0])


def denoiser(pipe: DiffusionPipeline) -> Any:
    """Return the denoiser of a pipeline."""
    return getattr(pipe, of(pipe).denoiser)


def noise_process(pipe: DiffusionPipeline) -> NoiseProcess:
    """Return the noise process of a pipeline's scheduler. Raises BaseModelError if it is not supported."""
    return of(pipe).noise_process(cast(Any, pipe).scheduler)


def default_side(pipe: DiffusionPipeline) -> int:
    """Return the side in pixels of the images that a base model was trained for."""
    return denoiser(pipe).config.sample_size * cast(Any, pipe).vae_scale_factor


def latent_pixels(pipe: DiffusionPipeline) -> int:
    """Return the side in pixels of a position of the latents that the denoiser takes."""
    return cast(Any, pipe).image_processor.config.vae_scale_factor


def version(config: Mapping[str, Any]) -> str:
    """Return "sd1", "sd2" or "sdxl" for the configuration of a denoiser; "sd1" for unknown widths."""
    if size_conditioned(config):
        return "sdxl"
    return "sd2" if VERSIONS.get(config.get("cross_attention_dim")) == "sd2" else "sd1"


def size_conditioned(config: Mapping[str, Any]) -> bool:
    """Whether a denoiser is conditioned on original size, crop and target size, as SDXL's is, by its configuration."""
    return config.get("addition_embed_type") == "text_time"


def is_plain_prompt(pipe: DiffusionPipeline, prompt: str) -> bool:
    """Whether a prompt has no weights and fits the text encoders, so that ``Family.encode_prompts`` can take it."""
    return parse_weights(prompt) == [(prompt, 1.0)] and not split(tokenizer(pipe), prompt)[1]


def encode_weighted(pipe: DiffusionPipeline, prompt: str, negative: str | None) -> dict[str, Any]:
    """Encode a prompt of any length, with weights, and its negative prompt as keyword arguments of the pipeline's call.

    A pooled embedding is computed from the words that fit the encoder, without weights.
    """
    family = of(pipe)
    prompts = [prompt] if negative is None else [prompt, negative]
    start = [split(tokenizer(pipe), without_weights(text))[0] for text in prompts]
    encoded = family.encode_prompts(pipe, start[:1], start[1:] or None)
    parsed = [parse_weights(text) for text in prompts]
    states = [hidden_states(pipe, *names, parsed, family.embeddings_type) for names in family.encoders]
    hidden = [cat(parts, dim=-1) for parts in zip(*states, strict=True)]
    if negative is not None and not encoded["negative_prompt_embeds"].any():  # zeros for an empty negative prompt
        hidden[1] = zeros_like(hidden[1])
    return encoded | dict(zip(("prompt_embeds", "negative_prompt_embeds"), hidden, strict=False))


def tokenizer(pipe: DiffusionPipeline) -> Any:
    """Return the tokenizer of the first text encoder; the second has the same vocabulary and length."""
    return getattr(pipe, of(pipe).encoders[0][1])


def text_encoders(pipe: DiffusionPipeline) -> list[nn.Module]:
    """Return the text encoders of a pipeline, in the family's order."""
    return [cast(nn.Module, getattr(pipe, name)) for name, _ in of(pipe).encoders]


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
    return family.tokenize([getattr(pipe, name) for _, name in family.encoders], captions)


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text without those of its start and end."""
    return tokenizer(text, add_special_tokens=False).input_ids
