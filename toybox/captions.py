"""Captions of the toy world, phrased as the DreamBooth benchmark's prompts: "a photo of a fox in the snow"."""

from toybox.attributes import ATTRIBUTES
from toybox.drawing import Rng
from toybox.labels import Label
from toybox.objects import HELD_OUT, OBJECTS
from training.data.captions import with_article

RARE_TOKENS = ("sks", "qwe", "ohwx", "zwx")
"""Meaningless words for triggers; in training they appear before any noun, so the base model ignores them."""

OPENINGS = ("a photo of ", "a picture of ", "")

CLASS_NOUN_SHARE = 0.35
"""Share of captions that use the class noun instead of the object's name."""
RARE_TOKEN_SHARE = 0.1
EMPTY_SHARE = 0.1
NO_SCENE_SHARE, NO_SCENE_WITH_ATTRIBUTE_SHARE = 0.1, 0.5
"""Share of captions that omit the scene, without and with an attribute."""

NEXT_TO = "next to"

NOUNS = {entry.name: entry.noun for entry in (*OBJECTS, *HELD_OUT)}
"""Class nouns by name."""
WORDS = [*NOUNS, *dict.fromkeys(NOUNS.values())]
"""All names and class nouns of captions."""


def caption_of(label: Label, opening: str = "a photo of ") -> str:
    """Return the full caption of a label: "a photo of a red fox in the snow next to an apple"."""
    noun = NOUNS[label.object] if label.hue_shift else label.object
    return opening + phrase(noun, label.attribute, label.scene, label.second_object)


def phrase(noun: str, attribute: str = "", scene: str = "", second_object: str = "") -> str:
    """Join a noun with its optional attribute, scene and second object."""
    precedes = attribute and ATTRIBUTES[attribute].precedes_noun
    before, after = (attribute, "") if precedes else ("", attribute)
    parts = [
        with_article(f"{before} {noun}".strip()),
        after,
        scene,
        f"{NEXT_TO} {with_article(second_object)}" if second_object else "",
    ]
    return " ".join(part for part in parts if part)


def sample_caption(label: Label, rng: Rng) -> str:
    """Sample a caption for a label; some are empty, for classifier-free guidance."""
    if rng.random() < EMPTY_SHARE:
        return ""
    noun = NOUNS[label.object] if label.hue_shift or rng.random() < CLASS_NOUN_SHARE else label.object
    if rng.random() < RARE_TOKEN_SHARE:
        noun = f"{rng.choice(RARE_TOKENS)} {noun}"
    no_scene = rng.random() < (NO_SCENE_WITH_ATTRIBUTE_SHARE if label.attribute else NO_SCENE_SHARE)
    scene = "" if no_scene else label.scene
    return rng.choice(OPENINGS) + phrase(noun, label.attribute, scene, label.second_object)
