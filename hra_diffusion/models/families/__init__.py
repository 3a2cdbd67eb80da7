"""Families of base models: the differences between Stable Diffusion 1/2 and XL, one file each.

A family defines how prompts are encoded for the UNet and how other programs name its components.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from torch import Tensor, cat, nn, stack, zeros_like

from hra_diffusion.adapters.targets import find_targets
from hra_diffusion.errors import BaseModelError
from hra_diffusion.models.families import sd, sdxl
from hra_diffusion.models.families.weighting import hidden_states
from hra_diffusion.models.prompts import parse_weights, split, without_weights

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Text = dict[str, Tensor]
"""A batch of prompts: token ``ids`` (B, encoders, L), or embeddings ``hidden`` (B, L, d) and, for SDXL, ``pooled``
(B, p). Training images add ``time_ids`` (B, 6), their size conditioning."""


class Family(Protocol):
    """One family of base models."""

    name: str
    pipeline: str
    """Name of the pipeline class in diffusers."""
    encoders: tuple[tuple[str, str], ...]
    """Names of the text encoders on the pipeline, each with that of its tokenizer."""
    kohya_prefixes: tuple[tuple[str, str], ...]
    """Components with the prefix of their keys in kohya's files."""
    embeddings_type: str
    """Which hidden states of the text encoders the UNet takes: a name in compel's ReturnedEmbeddingsType."""
    guidance_scale: float
    addition_embed_types: tuple[str | None, ...]
    """Values of ``addition_embed_type`` that a UNet of this family may have."""
    from_pretrained_kwargs: Mapping[str, Any]
    """Keyword arguments for ``from_pretrained`` and ``from_single_file``."""
    original_unet_names: bool
    """Whether kohya's files name the UNet's layers as the original checkpoint does rather than as diffusers does."""

    def encode_prompts(self, pipe: Any, prompts: list[str], negative: list[str] | None) -> dict[str, Any]:
        """Encode prompts, and negative prompts for guidance, as keyword arguments of the pipeline's call."""
        ...

    def embed(self, encoders: Sequence[nn.Module], ids: Tensor) -> Text:
        """Run the text encoders on token ids (B, encoders, L); returns the embeddings that the UNet takes."""
        ...

    def unused_layers(self, component: str, encoder: Any) -> tuple[str, ...]:
        """Paths of the text encoder's layers whose output the UNet does not use; training them has no effect."""
        ...

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Decode latents (N, channels, height, width) to pixels from −1 to 1 (N, 3, height, width)."""
        ...

    def finish(self, pipe: Any, pixels: Tensor) -> Tensor:
        """Scale decoded pixels to 0 to 1, after the pipeline's own last step."""
        ...

    def added_cond_kwargs(self, text: Text, pixels: int) -> dict[str, Tensor] | None:
        """``added_cond_kwargs`` of the UNet's call, for square images of ``pixels`` a side."""
        ...


FAMILIES: tuple[Family, ...] = (sd.StableDiffusion(), sdxl.StableDiffusionXL())
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


def version(unet_config: Mapping[str, Any]) -> str:
    """Return "sd1", "sd2" or "sdxl" for the configuration of a UNet; "sd1" for unknown widths."""
    if size_conditioned(unet_config):
        return "sdxl"
    return "sd2" if VERSIONS.get(unet_config.get("cross_attention_dim")) == "sd2" else "sd1"


def size_conditioned(unet_config: Mapping[str, Any]) -> bool:
    """Whether a UNet is conditioned on original size, crop and target size, as SDXL's is."""
    return unet_config.get("addition_embed_type") == "text_time"


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
    """Return token ids (N, encoders, L) by each encoder's tokenizer, padded and truncated to its maximum length."""
    return stack([_ids(getattr(pipe, name), captions) for _, name in of(pipe).encoders], dim=1)


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text without those of its start and end."""
    return tokenizer(text, add_special_tokens=False).input_ids


def _ids(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    length = tokenizer.model_max_length
    return tokenizer(
        list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
