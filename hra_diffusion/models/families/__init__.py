"""What differs between the families of base models, one small file each; everything else is the same code for all.

A family says how prompts become what the UNet takes, and how files elsewhere call its parts.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from torch import Tensor, cat, nn, stack, zeros_like

from hra_diffusion.adapters.targets import find_targets
from hra_diffusion.models.families import sd, sdxl
from hra_diffusion.models.families.weighting import hidden_states
from hra_diffusion.models.prompts import fragments, plain, split

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Text = dict[str, Tensor]
"""A batch of prompts: ``ids`` (B, encoders, L), or embedded, ``hidden`` (B, L, d) and where the UNet wants it
``pooled`` (B, p). For training pictures also ``time_ids`` (B, 6), their size conditioning."""


class Family(Protocol):
    """One family of base models."""

    name: str
    pipeline: str
    """The class of its pipelines, by its name in diffusers."""
    encoders: tuple[tuple[str, str], ...]
    """The text encoders, each with its tokenizer, by their names on the pipeline."""
    kohya: tuple[tuple[str, str], ...]
    """The components, each with the prefix that kohya's files give its keys."""
    hidden_states: str
    """Which of the text encoders' hidden states the UNet takes, by its name in compel's ReturnedEmbeddingsType."""
    guidance_scale: float
    additions: tuple[str | None, ...]
    """The conditioning beside the text that a UNet of this family may have ("addition_embed_type")."""
    loading: Mapping[str, Any]
    """What ``from_pretrained`` takes beside the usual."""
    original_unet_names: bool
    """Whether kohya's files name the UNet's layers as the original checkpoint does, not as diffusers does."""

    def encode(self, pipe: Any, prompts: list[str], negative: list[str] | None) -> dict[str, Any]:
        """Prompts, and negative ones where guidance is used, as keyword arguments of the pipeline's call."""
        ...

    def embed(self, encoders: Sequence[nn.Module], ids: Tensor) -> Text:
        """Token ids (B, encoders, L) through the text encoders, as this family's UNet wants them."""
        ...

    def unseen(self, component: str, encoder: Any) -> str:
        """Path of the text encoder's layer that the UNet never hears of, where nothing can learn; "" for none."""
        ...

    def conditions(self, text: Text, pixels: int) -> dict[str, Any]:
        """What the UNet's call takes beside the hidden states, for square pictures of ``pixels`` a side."""
        ...


FAMILIES: tuple[Family, ...] = (sd.StableDiffusion(), sdxl.StableDiffusionXL())


def pipeline_class(family: Family) -> Any:
    """The class of a family's pipelines; diffusers is imported now, not with this module, since it takes seconds."""
    return getattr(importlib.import_module("diffusers"), family.pipeline)


def of(pipe: DiffusionPipeline) -> Family:
    """The family of a pipeline; a subclass of Stable Diffusion's pipeline counts as Stable Diffusion."""
    return next((family for family in reversed(FAMILIES) if isinstance(pipe, pipeline_class(family))), FAMILIES[0])


def size_conditioned(pipe: DiffusionPipeline) -> bool:
    """Whether the UNet is conditioned on original size, crop and target size, as Stable Diffusion XL's is."""
    return pipe.unet.config.addition_embed_type == "text_time"


def reads_as_is(pipe: DiffusionPipeline, prompt: str) -> bool:
    """Whether a prompt has no weights and the text encoders read it at once, so that ``Family.encode`` can take it."""
    return fragments(prompt) == [(prompt, 1.0)] and not split(tokenizer(pipe), prompt)[1]


def encode_weighted(pipe: DiffusionPipeline, prompt: str, negative: str | None) -> dict[str, Any]:
    """One prompt of any length, with weights, and its negative prompt, as keyword arguments of the pipeline's call.

    A pooled embedding is made of the words that the encoder reads at once, without weights.
    """
    family = of(pipe)
    prompts = [prompt] if negative is None else [prompt, negative]
    start = [split(tokenizer(pipe), plain(text))[0] for text in prompts]
    encoded = family.encode(pipe, start[:1], start[1:] or None)
    parsed = [fragments(text) for text in prompts]
    states = [hidden_states(pipe, *names, parsed, family.hidden_states) for names in family.encoders]
    hidden = [cat(parts, dim=-1) for parts in zip(*states, strict=True)]
    if negative is not None and not encoded["negative_prompt_embeds"].any():  # the base wants zeros for no words
        hidden[1] = zeros_like(hidden[1])
    return encoded | dict(zip(("prompt_embeds", "negative_prompt_embeds"), hidden, strict=False))


def tokenizer(pipe: DiffusionPipeline) -> Any:
    """The tokenizer of the first text encoder; a second one has the same vocabulary and length."""
    return getattr(pipe, of(pipe).encoders[0][1])


def text_encoders(pipe: DiffusionPipeline) -> list[nn.Module]:
    """The pipeline's text encoders, in the family's order."""
    return [cast(nn.Module, getattr(pipe, name)) for name, _ in of(pipe).encoders]


def text_targets(pipe: DiffusionPipeline) -> dict[str, list[str]]:
    """The attention layers of each text encoder that can learn, by component."""
    family, targets = of(pipe), {}
    for name, _ in family.encoders:
        encoder = getattr(pipe, name)
        unseen = family.unseen(name, encoder)
        targets[name] = [path for path in find_targets(encoder) if not unseen or f"{unseen}." not in path]
    return targets


def tokenize(pipe: DiffusionPipeline, captions: Sequence[str]) -> Tensor:
    """Token ids (N, encoders, L) by each encoder's own tokenizer, padded and cut to its length as the pipeline does."""
    return stack([_ids(getattr(pipe, name), captions) for _, name in of(pipe).encoders], dim=1)


def _ids(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    length = tokenizer.model_max_length
    return tokenizer(
        list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
