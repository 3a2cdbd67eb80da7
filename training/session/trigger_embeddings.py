"""Pivotal tuning: train the embeddings of the trigger's tokens beside the adapter."""

from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from hra_diffusion.adapters import attachment
from hra_diffusion.adapters.token_embeddings import vectors_of, vocabulary_of
from hra_diffusion.models import families
from training.config import TrainConfig


def add_trigger_embeddings(config: TrainConfig, pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    """Attach trainable embeddings of the trigger's tokens to each text encoder.

    They start in the direction of the class noun's mean embedding. Returns their norm by component: the median of the
    vocabulary's (see ``restore_norms``).
    """
    norms = {}
    for name, tokenizer in families.of(pipe).encoders:
        encoder, read = getattr(pipe, name), getattr(pipe, tokenizer)
        vocabulary, tokens = vocabulary_of(encoder), {config.trigger: token_ids(read, config.trigger)}
        norms[name] = vocabulary.float().norm(dim=1).median()
        noun = vocabulary[token_ids(read, config.class_noun)].float().mean(dim=0)
        vectors = (noun * norms[name] / noun.norm()).expand(len(tokens[config.trigger]), -1)
        attachment.attach_vectors(encoder, config.name, tokens, vectors)
    return norms


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text without those of its start and end; one of a pipeline without tokenizer."""
    return tokenizer(text, add_special_tokens=False).input_ids if tokenizer else [0]


@torch.no_grad()
def restore_norms(pipe: StableDiffusionPipeline, name: str, norms: dict[str, Tensor]) -> None:
    """Scale the embeddings to their norm after a step, so that only their directions are trained.

    Source: ``preserve_embedding_norm`` of OneTrainer (Nerogar/OneTrainer 23df383).
    """
    for component, norm in norms.items():
        vectors = vectors_of(getattr(pipe, component), name).vectors
        vectors.mul_(norm / vectors.norm(dim=1, keepdim=True))
