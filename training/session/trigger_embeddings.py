"""Pivotal tuning: train the embeddings of the trigger's tokens beside the adapter."""

from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from hra_diffusion.adapters import attachment
from hra_diffusion.adapters.token_embeddings import initial_vectors
from hra_diffusion.models import families
from training.config import TrainConfig


def add_trigger_embeddings(config: TrainConfig, pipe: StableDiffusionPipeline) -> None:
    """Attach trainable embeddings of the trigger's tokens to each text encoder. They start at the class noun's mean."""
    for name, tokenizer in families.of(pipe).encoders:
        encoder, read = getattr(pipe, name), getattr(pipe, tokenizer)
        tokens = {config.trigger: token_ids(read, config.trigger)}
        starts = [initial_vectors(encoder, token_ids(read, config.class_noun), len(ids)) for ids in tokens.values()]
        attachment.attach_vectors(encoder, config.name, tokens, torch.cat(starts))


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text without those of its start and end; one of a pipeline without tokenizer."""
    return tokenizer(text, add_special_tokens=False).input_ids if tokenizer else [0]
