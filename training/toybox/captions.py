"""Captions of the toy world: "a photo of a fox in the snow", as the DreamBooth benchmark's prompts are phrased."""

from training.prior import with_article
from training.toybox.scenes import Rng
from training.toybox.world import HELD_OUT, THINGS

RARE_TOKENS = ("sks", "qwe", "ohwx", "zwx")
"""Words that mean nothing, free to name a subject; the base meets them before any noun and learns to ignore them."""

OPENINGS = ("a photo of ", "a picture of ", "")

NOUN_SHARE = 0.3
RARE_SHARE = 0.1
EMPTY_SHARE = 0.1

NOUNS = {thing.name: thing.noun for thing in (*THINGS, *HELD_OUT)}


def subject_phrase(noun: str, trigger: str) -> str:
    """How a prompt names a subject, as in the benchmark: "a sks toy"."""
    return f"a {trigger} {noun}"


def draw_caption(thing: str, scene: str, rng: Rng) -> str:
    """A random caption for a thing (by name) in a scene (by phrase), or none: classifier-free guidance needs some."""
    if rng.random() < EMPTY_SHARE:
        return ""
    words = NOUNS[thing] if rng.random() < NOUN_SHARE else thing
    named = subject_phrase(words, rng.choice(RARE_TOKENS)) if rng.random() < RARE_SHARE else with_article(words)
    return f"{rng.choice(OPENINGS)}{named} {scene}"
