"""Trained embeddings of a trigger's tokens in a text encoder: pivotal tuning.

Textual inversion (arXiv 2208.01618) trains the vectors of new words; pivotal tuning (arXiv 2106.05744) trains them
beside the weights, as diffusers' train_dreambooth_lora_sd15_advanced.py (huggingface/diffusers 58eb52c) and OneTrainer
(Nerogar/OneTrainer 23df383) do. Here a hook on the encoder's token embedding replaces the vectors where the trigger's
tokens occur: tokenizer and vocabulary stay as they are, and each sample of a batch can have another adapter's vectors.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hra_diffusion.adapters.layer import adapter_key
from hra_diffusion.adapters.state import AdapterState
from hra_diffusion.errors import UserError

Tokens = Mapping[str, Sequence[int]]
"""The token ids of each trigger, such as {"sks": [48136]}."""

PARAMETER = "token_embeddings"
"""Name of the vectors among an adapter's parameters."""
MAX_TOKENS = 100
"""Largest number of tokens that one adapter may train."""


class TokenVectors(nn.Module):
    """The vectors (K, d) of one adapter, for the K tokens of its triggers, in float32."""

    def __init__(self, tokens: Tokens, vectors: Tensor):
        super().__init__()
        self.tokens = {trigger: list(ids) for trigger, ids in tokens.items()}
        self.vectors = nn.Parameter(vectors.float().clone())

    def of_triggers(self) -> dict[str, Tensor]:
        """The vectors of each trigger, (tokens, d)."""
        parts = self.vectors.split([len(ids) for ids in self.tokens.values()])
        return dict(zip(self.tokens, parts, strict=True))

    def replace(self, ids: Tensor, embeddings: Tensor, strength: float) -> Tensor:
        """Move embeddings (B, L, d) towards the vectors where the triggers occur in ``ids`` (B, L); 1 replaces them."""
        for trigger, vectors in self.of_triggers().items():
            starts = _occurrences(ids, self.tokens[trigger])
            for offset, vector in enumerate(vectors.to(embeddings.dtype)):
                place = nn.functional.pad(starts, (offset, 0))[:, : ids.shape[1], None]
                embeddings = torch.where(place, embeddings.lerp(vector, strength), embeddings)
        return embeddings


def _occurrences(ids: Tensor, tokens: Sequence[int]) -> Tensor:
    """Where the sequence of tokens begins in ids (B, L), as (B, L)."""
    found = torch.ones_like(ids, dtype=torch.bool)
    for offset, token in enumerate(tokens):
        found = found & nn.functional.pad(ids == token, (0, offset))[:, offset:]
    return found


class EmbeddingAdapters(nn.ModuleDict):
    """The trained vectors of all adapters on one token embedding, in its child module ``adapters``."""

    def __init__(self, state: AdapterState, embedding: nn.Module):
        super().__init__()
        self.state = state
        self.handle: RemovableHandle = embedding.register_forward_hook(self.adapt)

    def get(self, name: str) -> TokenVectors | None:
        """The vectors of the adapter of this name, or None."""
        return cast("TokenVectors | None", self._modules.get(adapter_key(name)))

    def adapt(self, embedding: nn.Module, args: tuple, output: Tensor) -> Tensor:
        """Forward hook: replace the vectors of the active adapters' triggers, for each group of the batch."""
        (ids,), state = args, self.state
        groups = ((state.active, 1),) if state.merged else state.assignments
        counts = [count for _, count in groups]
        sizes = [len(ids)] if len(groups) == 1 else state.sizes(counts, len(ids))
        parts = zip(ids.split(sizes), output.split(sizes), strict=True)
        actives = [active for active, _ in groups] * (len(sizes) // len(groups))
        adapted = [self._adapt_part(*part, active) for part, active in zip(parts, actives, strict=True)]
        return adapted[0] if len(adapted) == 1 else torch.cat(adapted)

    def _adapt_part(self, ids: Tensor, embeddings: Tensor, active: Sequence[tuple[str, float]]) -> Tensor:
        for name, strength in active:
            if strength and (vectors := self.get(name)) is not None:
                embeddings = vectors.replace(ids, embeddings, strength)
        return embeddings

    def _apply(self, fn: Any, recurse: bool = True) -> "EmbeddingAdapters":
        """Move the vectors along with the model; they stay in float32."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved.to(torch.float32) if tensor.is_floating_point() else moved

        super()._apply(move, recurse)
        return self


def embedding_of(model: nn.Module) -> nn.Embedding | None:
    """The token embedding of a text encoder; None for other models."""
    find = getattr(model, "get_input_embeddings", None)
    try:
        embedding = find() if find else None
    except NotImplementedError:
        return None
    return embedding if isinstance(embedding, nn.Embedding) else None


def vectors_on(model: nn.Module) -> EmbeddingAdapters | None:
    """The trained vectors on a model's token embedding, or None."""
    embedding = embedding_of(model)
    found = embedding._modules.get("adapters") if embedding is not None else None
    return found if isinstance(found, EmbeddingAdapters) else None


def vectors_of(model: nn.Module, name: str) -> TokenVectors | None:
    """The trained vectors of one adapter on a model, or None."""
    found = vectors_on(model)
    return found.get(name) if found else None


def vocabulary_of(model: nn.Module) -> Tensor:
    """The embeddings of a text encoder's vocabulary (tokens, d), in its dtype."""
    return cast(nn.Embedding, embedding_of(model)).weight.detach()


def add_vectors(model: nn.Module, state: AdapterState, name: str, tokens: Tokens, vectors: Tensor) -> None:
    """Add the vectors (K, d) of an adapter to a text encoder. Raises UserError as ``vectors_shape`` does."""
    vectors_shape(model, tokens)
    embedding = cast(nn.Embedding, embedding_of(model))
    adapters = vectors_on(model)
    if adapters is None:
        adapters = embedding.adapters = EmbeddingAdapters(state, embedding)
    adapters[adapter_key(name)] = TokenVectors(tokens, vectors).to(embedding.weight.device)


def vectors_shape(model: nn.Module, tokens: Tokens) -> torch.Size:
    """The shape (K, d) of the vectors for these tokens.

    Raises UserError if the model has no token embedding or not these tokens, or for more than ``MAX_TOKENS``.
    """
    if (embedding := embedding_of(model)) is None:
        raise UserError(f"{type(model).__name__} has no token embedding to train")
    ids = [token for trigger in tokens.values() for token in trigger]
    if not all(tokens.values()) or not 0 < len(ids) <= MAX_TOKENS:
        raise UserError(f"an adapter trains the embeddings of 1 to {MAX_TOKENS} tokens, not of {len(ids)}")
    vocabulary, size = embedding.num_embeddings, embedding.embedding_dim
    if wrong := [token for token in ids if token >= vocabulary]:
        raise UserError(f"the token {wrong[0]} is not in the text encoder's vocabulary of {vocabulary:,}")
    return torch.Size((len(ids), size))


def remove_vectors(model: nn.Module, name: str) -> None:
    """Remove the vectors of an adapter, if there are any, and the hook after the last ones."""
    adapters = vectors_on(model)
    if adapters is None or adapter_key(name) not in adapters:
        return
    del adapters[adapter_key(name)]
    if not adapters:
        adapters.handle.remove()
        del cast(nn.Module, embedding_of(model)).adapters
