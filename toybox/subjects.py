"""Subjects: things the base has never seen, a few photos of each, and the prompts that ask for them elsewhere.

A subject is a held-out thing, or one put together from known drawings that is no drawing of the world: a thing in other
colours, a body under another's head. The prompts are those of the DreamBooth benchmark (arXiv 2208.12242): 25 for live
subjects, 25 for objects.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from toybox.captions import phrase
from toybox.scenes import SCENES, Rng
from toybox.sprites import load_sprite, recolour
from toybox.world import HELD_OUT, apply_look, find_scene, find_thing, render

NOTICE = (
    "The drawing is from Microsoft's Fluent emoji (MIT) by way of the npm package @lobehub/fluent-emoji-3d (MIT), "
    "rendered into scenes by toybox.\n"
)

HEAD_SHARE = 0.66
"""Width of another's head on a body, as a part of the body's."""


@dataclass(frozen=True)
class Prompt:
    """What one of the benchmark's prompts asks of a subject: the phrase of a scene or of a look, "" for the other."""

    scene: str = ""
    look: str = ""

    @property
    def text(self) -> str:
        """In words: "a {subject} in the jungle"."""
        return phrase("{subject}", self.look, self.scene)


def _scenes(phrases: str) -> Iterator[Prompt]:
    return (Prompt(scene=line.strip()) for line in phrases.strip().splitlines())


def _looks(phrases: str) -> Iterator[Prompt]:
    return (Prompt(look=line.strip()) for line in phrases.strip().splitlines())


_EVERYWHERE = """
    in the jungle
    in the snow
    on the beach
    on a cobblestone street
    on top of pink fabric
    on top of a wooden floor
    with a city in the background
    with a mountain in the background
    with a blue house in the background
    on top of a purple rug in a forest
"""
_ALWAYS = """
    red
    purple
    shiny
    wet
    cube shaped
"""

OBJECT_PROMPTS: tuple[Prompt, ...] = (
    *_scenes(_EVERYWHERE),
    *_scenes("""
    with a wheat field in the background
    with a tree and autumn leaves in the background
    with the Eiffel Tower in the background
    floating on top of water
    floating in an ocean of milk
    on top of green grass with sunflowers around it
    on top of a mirror
    on top of the sidewalk in a crowded street
    on top of a dirt road
    on top of a white rug
    """),
    *_looks(_ALWAYS),
)

LIVE_PROMPTS: tuple[Prompt, ...] = (
    *_scenes(_EVERYWHERE),
    *_looks("""
    wearing a red hat
    wearing a santa hat
    wearing a rainbow scarf
    wearing a black top hat and a monocle
    in a chef outfit
    in a firefighter outfit
    in a police outfit
    wearing pink glasses
    wearing a yellow shirt
    in a purple wizard outfit
    """),
    *_looks(_ALWAYS),
)


@dataclass(frozen=True)
class Subject:
    """Something to teach: its name, class noun and list of prompts, and the thing it is drawn as.

    `hue_turn` turns that thing's colours; `head` is the name of another thing, which stands in for its head.
    """

    name: str
    noun: str
    live: bool
    thing: str
    hue_turn: float = 0.0
    head: str = ""

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The benchmark's prompts for it."""
        return LIVE_PROMPTS if self.live else OBJECT_PROMPTS

    def draw(self, sprites: Path) -> Image.Image:
        """Its sprite."""
        sprite = load_sprite(sprites, find_thing(self.thing).code)
        if self.head:
            sprite = behead(sprite, load_sprite(sprites, find_thing(self.head).code))
        return recolour(sprite, self.hue_turn) if self.hue_turn else sprite


LIVE = ("t rex", "hedgehog", "monkey", "penguin")
"""Held-out things that are live subjects; the others are objects."""

SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        *(Subject(thing.name, thing.noun, thing.name in LIVE, thing.name) for thing in HELD_OUT),
        Subject("yellow parrot", "bird", True, "parrot", hue_turn=0.21),
        Subject("pig bear", "toy", False, "teddy bear", head="pig"),
    )
}
"""The ten subjects of the benchmark."""


def behead(body: Image.Image, head: Image.Image) -> Image.Image:
    """The body with another head over its own: both RGBA, their tops and middles in one place."""
    width = round(HEAD_SHARE * body.width)
    head = head.resize((width, round(head.height * width / head.width)), Image.Resampling.BILINEAR)
    joined = body.copy()
    joined.alpha_composite(head, ((body.width - width) // 2, 0))
    return joined


def find_subject(name: str, hue_turn: float = 0.0) -> Subject:
    """The subject called `name`, or the thing of that name with its colours turned.

    Raises ValueError for something the base was trained on, unless its colours are turned: that is no new subject.
    """
    if name in SUBJECTS and not hue_turn:
        return SUBJECTS[name]
    thing = find_thing(name)
    if not hue_turn:
        raise ValueError(
            f"the base knows {name!r} already: choose one of {', '.join(SUBJECTS)}, or turn its colours with --hue"
        )
    return Subject(name, thing.noun, name in LIVE, name, hue_turn)


def photograph_subject(sprites: Path, subject: Subject, scene: str, look: str = "", seed: int | Rng = 0) -> Image.Image:
    """One picture of a subject in a scene, perhaps in a look; equal seeds give equal pictures."""
    rng = np.random.default_rng(seed)
    return render([apply_look(subject.draw(sprites), look, rng)], find_scene(scene), rng)


def photo_scenes(rng: Rng, count: int) -> list[str]:
    """Phrases of `count` scenes in an order of chance, none twice as long as there are enough."""
    chosen, phrases = rng.permutation(len(SCENES)), list(SCENES)
    return [phrases[chosen[index % len(phrases)]] for index in range(count)]


def take_photos(sprites: Path, name: str, count: int, seed: int = 0, hue_turn: float = 0.0) -> list[Image.Image]:
    """`count` pictures of the subject called `name`, each in a scene of its own (as long as there are enough).

    Raises ValueError as `find_subject` does.
    """
    subject, rng = find_subject(name, hue_turn), np.random.default_rng(seed)
    return [photograph_subject(sprites, subject, scene, seed=rng) for scene in photo_scenes(rng, count)]


def save_photos(photos: list[Image.Image], folder: Path) -> None:
    """Write the pictures as 1.png, 2.png, … with a NOTICE of where the drawing is from."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(photos, start=1):
        photo.save(folder / f"{number}.png", optimize=True)
    (folder / "NOTICE").write_text(NOTICE)
