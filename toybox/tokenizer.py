"""The tokenizer: a small byte-level BPE like CLIP's, trained on the words of the toy world.

Its vocabulary has CLIP's layout (256 bytes, the same 256 at the end of a word, merges, two special tokens), so it
covers any text, and ``CLIPTokenizer`` loads its two files. A new word in the world renumbers the tokens, which
invalidates trained models.
"""

from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import CLIPTokenizer

from toybox.attributes import ATTRIBUTES
from toybox.captions import NEXT_TO, OPENINGS, RARE_TOKENS, WORDS
from toybox.scenes import SCENES
from toybox.words import common_words

START, END, CLOSE = "<|startoftext|>", "<|endoftext|>", "</w>"
MAX_LENGTH = 32


def corpus() -> Counter[str]:
    """Return the words to train on with weights, which are higher for words of the world: these are merged first."""
    world = " ".join([*OPENINGS, *SCENES, *ATTRIBUTES, NEXT_TO, *WORDS, *RARE_TOKENS])
    return Counter(world.lower().split() * 10 + common_words())


def learn_merges(words: Counter[str]) -> list[tuple[str, str]]:
    """Learn BPE merges (Sennrich et al. 2016, algorithm 1) until every word (ASCII) is one token.

    Ties are resolved alphabetically, so the merges are deterministic.
    """
    spellings = {(*word[:-1], word[-1] + CLOSE): weight for word, weight in words.items()}
    merges = []
    while pairs := count_pairs(spellings):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged = ((merge(spelling, best), weight) for spelling, weight in spellings.items())
        spellings = {spelling: weight for spelling, weight in merged if len(spelling) > 1}
    return merges


@cache
def world_merges() -> list[tuple[str, str]]:
    """Return the merges of the toy world's words: they take seconds to learn."""
    return learn_merges(corpus())


def count_pairs(spellings: dict[tuple[str, ...], int]) -> Counter[tuple[str, str]]:
    """Count adjacent pairs of tokens, weighted."""
    pairs: Counter[tuple[str, str]] = Counter()
    for spelling, weight in spellings.items():
        for pair in pairwise(spelling):
            pairs[pair] += weight
    return pairs


def merge(spelling: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Merge every occurrence of ``pair`` in ``spelling``."""
    merged: list[str] = []
    for token in spelling:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return tuple(merged)


def build_vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Map tokens to ids: bytes, bytes at the end of a word, merges in order, then the special tokens."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*bytes_, *(byte + CLOSE for byte in bytes_), *("".join(pair) for pair in merges), START, END]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def train_tokenizer() -> CLIPTokenizer:
    """Train the tokenizer of the toy world; the result is deterministic."""
    merges = world_merges()
    return CLIPTokenizer(
        vocab=build_vocabulary(merges),
        merges=merges,  # pyright: ignore[reportArgumentType] - it needs pairs
        model_max_length=MAX_LENGTH,
    )


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save the tokenizer, with CLIP's vocab.json and merges.txt beside the files of transformers."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def tokenise(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return token ids (N, MAX_LENGTH), padded and truncated as in StableDiffusionPipeline."""
    padded = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    return padded.input_ids
