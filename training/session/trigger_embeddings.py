"""Pivotal tuning: train the embeddings of the trigger's tokens beside the adapter."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from hra_diffusion.adapters import attachment
from hra_diffusion.adapters.token_embeddings import PARAMETER, vocabulary_of
from hra_diffusion.models import families
from training.config import TrainConfig


def add_trigger_embeddings(config: TrainConfig, pipe: StableDiffusionPipeline) -> None:
    """Attach trainable embeddings of the triggers' tokens to each text encoder.

    They start in the direction of their class noun's mean embedding, with the median norm of the vocabulary's.
    """
    for name, tokenizer in families.of(pipe).encoders:
        encoder, read = getattr(pipe, name), getattr(pipe, tokenizer)
        vocabulary = vocabulary_of(encoder)
        norm, tokens, vectors = vocabulary.float().norm(dim=1).median(), {}, []
        for subject in config.subjects:
            tokens[subject.trigger] = _token_ids(read, subject.trigger)
            noun = vocabulary[_token_ids(read, subject.class_noun)].float().mean(dim=0)
            vectors.append((noun * norm / noun.norm()).expand(len(tokens[subject.trigger]), -1))
        attachment.attach_vectors(encoder, config.name, tokens, torch.cat(vectors))


def _token_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text without those of its start and end; one of a pipeline without tokenizer."""
    return families.token_ids(tokenizer, text) if tokenizer else [0]


@contextlib.contextmanager
def unchanged_norms(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """After an optimiser step in the block, scale the embeddings to their norm before it: directions are trained.

    Source: ``preserve_embedding_norm`` of OneTrainer (Nerogar/OneTrainer 23df383).
    """
    trained = [parameter.detach() for key, parameter in parameters.items() if key.endswith(f".{PARAMETER}")]
    norms = [vectors.norm(dim=1, keepdim=True) for vectors in trained]
    yield
    for vectors, norm in zip(trained, norms, strict=True):
        vectors.mul_(norm / vectors.norm(dim=1, keepdim=True))
