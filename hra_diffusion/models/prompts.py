"""Prompt syntax: attention weights like ``(dog:1.4)``, and words beyond a text encoder's maximum length."""

import bisect
import re
from itertools import groupby
from typing import Any

from hra_diffusion.errors import Note

Fragment = tuple[str, float]
"""A piece of a prompt and its weight."""
MAX_WEIGHT = 2.0
"""Largest weight; a group with a larger number is plain text, as in "(aspect ratio 16:9)"."""

_NUMBER = r":\s*(\d+(?:\.\d*)?|\.\d+)\s*"


class PromptWarning(Note):
    """A prompt exceeds the text encoder's maximum length, or has weights that are read as text."""


def parse_weights(prompt: str) -> list[Fragment]:
    r"""Split a prompt into fragments of text with a weight.

    ``(text:number)`` weights the text, with a number from 0 to 2; weights of nested groups are multiplied. Every other
    parenthesis is text. ``\(`` and ``\)`` are always text: ``\(dog:1.4\)`` reads "(dog:1.4)". A prompt without a number
    before a closing parenthesis is returned unchanged, including backslashes.
    """
    if not re.search(rf"{_NUMBER}\\?\)", prompt):
        return [(prompt, 1.0)]
    pieces: list[Fragment] = []
    opened: list[int] = []
    for part in re.split(r"(\\?[()])", prompt):
        weighted = re.search(rf"{_NUMBER}$", pieces[-1][0]) if part == ")" and opened else None
        if weighted and float(weighted[1]) <= MAX_WEIGHT:
            pieces[-1] = pieces[-1][0][: weighted.start()], 1.0
            start = opened.pop()
            pieces[start:] = [(text, weight * float(weighted[1])) for text, weight in pieces[start + 1 :]]
            continue
        if part == "(":
            opened.append(len(pieces))
        elif part == ")" and opened:
            opened.pop()
        pieces.append((part.removeprefix("\\") if part in (r"\(", r"\)") else part, 1.0))
    joined = (("".join(text for text, _ in same), weight) for weight, same in groupby(pieces, lambda piece: piece[1]))
    return [(text, weight) for text, weight in joined if text.strip()] or [("", 1.0)]


def without_weights(prompt: str) -> str:
    """Return the text of a prompt without its weights."""
    return "".join(text for text, _ in parse_weights(prompt))


def split(tokenizer: Any, text: str, limit: int | None = None) -> tuple[str, str]:
    """Split a text into the words that fit ``limit`` tokens, by default the tokenizer's maximum, and the rest."""
    words, most = text.split(), limit or tokenizer.model_max_length

    def tokens(count: int) -> int:
        return len(tokenizer(" ".join(words[:count]), verbose=False).input_ids)

    if tokens(len(words)) <= most:
        return text, ""
    fitting = bisect.bisect_right(range(len(words) + 1), most, key=tokens) - 1
    return " ".join(words[:fitting]), " ".join(words[fitting:])


def prompt_notes(tokenizer: Any, prompt: str) -> list[str]:
    """Return notes on a prompt: numbers that are not weights, and words that are encoded separately."""
    groups = re.finditer(rf"(?<!\\)\([^()]*{_NUMBER}\)", prompt)
    notes = [
        f"“{group[0]}” is read as text: a weight is a number from 0 to {MAX_WEIGHT:g}"
        for group in groups
        if float(group[1]) > MAX_WEIGHT
    ]
    if excess := split(tokenizer, without_weights(prompt))[1]:
        notes.append(
            f"the text encoder reads {tokenizer.model_max_length - 2} tokens at once; these words of the prompt are "
            f"encoded separately and may count for less: “{excess}”"
        )
    return notes
