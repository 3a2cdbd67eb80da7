"""Token ids of families whose text encoders are all CLIP models: one row each, of the same length."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, stack


def tokenize(tokenizers: Sequence[Any], captions: Sequence[str]) -> Tensor:
    """Return token ids (N, encoders, L) by each encoder's tokenizer, padded and truncated to its maximum length."""
    return stack([_ids(tokenizer, captions) for tokenizer in tokenizers], dim=1)


def ids_shape(encoders: Sequence[Any]) -> tuple[int, int]:
    """Return rows and length of the token ids of one caption."""
    return len(encoders), encoders[0].config.max_position_embeddings


def _ids(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    length = tokenizer.model_max_length
    return tokenizer(
        list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
