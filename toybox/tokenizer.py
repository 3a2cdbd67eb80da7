"""The toybox tokenizer: a small byte-level BPE of CLIP's kind, trained on the world's own words.

Its vocabulary is laid out as CLIP's is (256 bytes, the same 256 closing a word, merges, two special tokens last), so
any text has tokens and none is unknown; `CLIPTokenizer` reads its two files. A new word in the world renumbers tokens:
a base trained before needs training anew.
"""

from collections import Counter
from itertools import pairwise
from pathlib import Path

from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import CLIPTokenizer

from toybox.captions import BESIDE, OPENINGS, RARE_TOKENS, WORDS
from toybox.looks import LOOKS
from toybox.scenes import SCENES
from toybox.words import common_words

START, END, CLOSE = "<|startoftext|>", "<|endoftext|>", "</w>"
MAX_LENGTH = 32


def corpus() -> Counter[str]:
    """Every word that deserves a token, and its weight: the world's words weigh more, so they are merged first."""
    world = " ".join([*OPENINGS, *SCENES, *LOOKS, BESIDE, *WORDS, *RARE_TOKENS])
    return Counter(world.lower().split() * 10 + common_words())


def learn_merges(words: Counter[str]) -> list[tuple[str, str]]:
    """BPE merges (Sennrich et al. 2016, algorithm 1) until every word (plain ASCII) is one token.

    Of equally frequent pairs the alphabetically first is merged, so the same words always give the same merges.
    """
    spellings = {(*word[:-1], word[-1] + CLOSE): weight for word, weight in words.items()}
    merges = []
    while pairs := count_pairs(spellings):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spellings = {merge(spelling, best): weight for spelling, weight in spellings.items()}
    return merges


def count_pairs(spellings: dict[tuple[str, ...], int]) -> Counter[tuple[str, str]]:
    """How often two tokens stand side by side."""
    pairs: Counter[tuple[str, str]] = Counter()
    for spelling, weight in spellings.items():
        for pair in pairwise(spelling):
            pairs[pair] += weight
    return pairs


def merge(spelling: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """`spelling` with every occurrence of `pair` made one token."""
    merged: list[str] = []
    for token in spelling:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return tuple(merged)


def build_vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Token to number: bytes, closing bytes, merges in order, then start and end of text."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*bytes_, *(byte + CLOSE for byte in bytes_), *("".join(pair) for pair in merges), START, END]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def train_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the toy world; the same one every time."""
    merges = learn_merges(corpus())
    return CLIPTokenizer(
        vocab=build_vocabulary(merges),
        merges=merges,  # pyright: ignore[reportArgumentType] - it takes nothing but pairs
        model_max_length=MAX_LENGTH,
    )


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the tokenizer with CLIP's own vocab.json and merges.txt beside what transformers writes."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def tokenise(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token numbers (N, MAX_LENGTH), padded and cut as StableDiffusionPipeline does it."""
    padded = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    return padded.input_ids
