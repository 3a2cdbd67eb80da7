"""Variants of captions: their parts in other orders, and no caption.

All variants of a run are encoded before training. A batch draws among them by the seed and its position alone, so that
a resumed run trains with the same captions, also with frozen text encoders, whose embeddings are cached.

Shuffling and dropout follow kohya's trainer (kohya-ss/sd-scripts 48d368f, ``process_caption``), which shuffles anew for
every sample and therefore can't cache embeddings of shuffled captions.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.config import TrainConfig
from training.objective import seeded_generator

MAX_ORDERS = 16
"""Most orders of the parts of a caption. Embeddings of an order take 0.2 MB for Stable Diffusion 1, 0.6 MB for SDXL."""


@dataclass(frozen=True)
class CaptionRows:
    """The rows of a cache's text with which each of N photos is trained.

    Attributes:
        texts: the distinct texts to encode, one a row.
        rows: rows of the orders of each photo's caption (N, V), padded.
        counts: number of these orders (N,).
        empty: row of the empty caption.
        dropout: share of the samples that have the empty caption.
    """

    texts: Sequence[str]
    rows: Tensor
    counts: Tensor
    empty: int = 0
    dropout: float = 0.0

    def draw(self, photos: Tensor, generator: torch.Generator) -> Tensor:
        """Return a row for each photo (B,) of a batch."""
        order, kept = torch.rand(2, len(photos), generator=generator)
        rows = self.rows[photos, (order * self.counts[photos]).long()]
        return rows.masked_fill(kept < self.dropout, self.empty)


def variants(captions: Sequence[str], config: TrainConfig) -> CaptionRows:
    """Return the texts to encode, and which of them belong to each photo.

    ``captions``: the caption of each photo for training.
    """
    orders = [[caption] for caption in captions]
    if config.shuffle_captions:
        orders = [
            shuffled(caption, config.keep_tokens, seeded_generator(config.seed, "caption orders", number))
            for number, caption in enumerate(captions)
        ]
    texts = list(dict.fromkeys(itertools.chain(*orders, [""] if config.caption_dropout else [])))
    row = {text: number for number, text in enumerate(texts)}
    most = max(map(len, orders))
    rows = torch.tensor([[row[text] for text in own] + [0] * (most - len(own)) for own in orders])
    counts = torch.tensor([len(own) for own in orders])
    return CaptionRows(texts, rows, counts, row.get("", 0), config.caption_dropout)


def shuffled(caption: str, keep: int, generator: torch.Generator) -> list[str]:
    """Return the caption with its comma-separated parts in all orders, or MAX_ORDERS of them at random.

    The first ``keep`` parts stay in their place. A caption with less than two others is returned as it is.
    """
    parts = [part.strip() for part in caption.split(",") if part.strip()]
    fixed, free = parts[:keep], parts[keep:]
    if len(free) < 2:
        return [caption]
    if math.factorial(len(free)) <= MAX_ORDERS:
        orders = [list(order) for order in itertools.permutations(free)]
    else:
        drawn = (torch.randperm(len(free), generator=generator).tolist() for _ in range(MAX_ORDERS))
        orders = [[free[index] for index in order] for order in drawn]
    return [", ".join([*fixed, *order]) for order in orders]
