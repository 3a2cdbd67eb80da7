"""Captions of the toy world, phrased as the DreamBooth benchmark's prompts: "a photo of a fox in the snow"."""

from toybox.looks import LOOKS
from toybox.scenes import Rng
from toybox.world import HELD_OUT, THINGS, Label
from training.data.class_images import with_article

RARE_TOKENS = ("sks", "qwe", "ohwx", "zwx")
"""Meaningless words for triggers; in training they appear before any noun, so the base model ignores them."""

OPENINGS = ("a photo of ", "a picture of ", "")

NOUN_SHARE = 0.35
RARE_SHARE = 0.1
EMPTY_SHARE = 0.1
PLACELESS_SHARE, PLACELESS_LOOK_SHARE = 0.1, 0.5
"""Share of captions that omit the scene, without and with a look."""

BESIDE = "next to"

NOUNS = {thing.name: thing.noun for thing in (*THINGS, *HELD_OUT)}
WORDS = [*(thing.name for thing in (*THINGS, *HELD_OUT)), *dict.fromkeys(NOUNS.values())]
"""All names and class nouns of captions."""


def caption_of(label: Label, opening: str = "a photo of ") -> str:
    """Return the full caption of a label: "a photo of a red fox in the snow next to an apple"."""
    words = NOUNS[label.thing] if label.hue else label.thing
    return opening + phrase(words, label.look, label.scene, label.beside)


def phrase(words: str, look: str = "", scene: str = "", beside: str = "") -> str:
    """Join a noun with its optional look, scene and second thing."""
    before, after = (look, "") if look and LOOKS[look].before else ("", look)
    parts = [
        with_article(f"{before} {words}".strip()),
        after,
        scene,
        f"{BESIDE} {with_article(beside)}" if beside else "",
    ]
    return " ".join(part for part in parts if part)


def sample_caption(label: Label, rng: Rng) -> str:
    """Sample a caption for a label; some are empty, for classifier-free guidance."""
    if rng.random() < EMPTY_SHARE:
        return ""
    words = NOUNS[label.thing] if label.hue or rng.random() < NOUN_SHARE else label.thing
    if rng.random() < RARE_SHARE:
        words = f"{rng.choice(RARE_TOKENS)} {words}"
    placeless = rng.random() < (PLACELESS_LOOK_SHARE if label.look else PLACELESS_SHARE)
    return rng.choice(OPENINGS) + phrase(words, label.look, "" if placeless else label.scene, label.beside)
