"""Subjects that the base model has never seen: their photos, and the prompts of the DreamBooth benchmark.

A subject is a held-out thing, or a new combination of known drawings: a thing in other colours, or a body with another
thing's head. The prompts are those of arXiv 2208.12242: 25 for live subjects, 25 for objects.
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
"""Width of a replaced head as a fraction of the body's."""


@dataclass(frozen=True)
class Prompt:
    """A prompt of the benchmark: the phrase of a scene or of a look, "" for the other."""

    scene: str = ""
    look: str = ""

    @property
    def text(self) -> str:
        """The prompt as text: "a {subject} in the jungle"."""
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
    """A subject: its name, class noun, prompt list (``live`` or object), and the thing it is rendered from.

    ``hue_turn`` rotates the thing's hue; ``head`` names another thing that replaces its head.
    """

    name: str
    noun: str
    live: bool
    thing: str
    hue_turn: float = 0.0
    head: str = ""

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The benchmark's prompts for this subject."""
        return LIVE_PROMPTS if self.live else OBJECT_PROMPTS

    def draw(self, sprites: Path) -> Image.Image:
        """Create the subject's sprite."""
        sprite = load_sprite(sprites, find_thing(self.thing).code)
        if self.head:
            sprite = behead(sprite, load_sprite(sprites, find_thing(self.head).code))
        return recolour(sprite, self.hue_turn) if self.hue_turn else sprite


LIVE = ("t rex", "hedgehog", "monkey", "penguin")
"""Held-out things that use the prompts for live subjects."""

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
    """Paste another head over a body's, both RGBA, aligned at the top and centre."""
    width = round(HEAD_SHARE * body.width)
    head = head.resize((width, round(head.height * width / head.width)), Image.Resampling.BILINEAR)
    joined = body.copy()
    joined.alpha_composite(head, ((body.width - width) // 2, 0))
    return joined


def find_subject(name: str, hue_turn: float = 0.0) -> Subject:
    """Return the subject called ``name``, or the thing of that name with its hue rotated.

    Raises ValueError for a thing that the base model was trained on, unless its hue is rotated.
    """
    if name in SUBJECTS and not hue_turn:
        return SUBJECTS[name]
    thing = find_thing(name)
    if not hue_turn:
        raise ValueError(
            f"the base was trained on {name!r}: choose one of {', '.join(SUBJECTS)}, or turn its colours with --hue"
        )
    return Subject(name, thing.noun, name in LIVE, name, hue_turn)


def photograph_subject(sprites: Path, subject: Subject, scene: str, look: str = "", seed: int | Rng = 0) -> Image.Image:
    """Render a subject in a scene, optionally in a look; equal seeds give equal images."""
    rng = np.random.default_rng(seed)
    return render([apply_look(subject.draw(sprites), look, rng)], find_scene(scene), rng)


def photo_scenes(rng: Rng, count: int) -> list[str]:
    """Sample the phrases of ``count`` scenes, without repetition as long as there are enough."""
    chosen, phrases = rng.permutation(len(SCENES)), list(SCENES)
    return [phrases[chosen[index % len(phrases)]] for index in range(count)]


def take_photos(sprites: Path, name: str, count: int, seed: int = 0, hue_turn: float = 0.0) -> list[Image.Image]:
    """Render ``count`` photos of the subject called ``name``, each in another scene as long as there are enough.

    Raises ValueError as ``find_subject`` does.
    """
    subject, rng = find_subject(name, hue_turn), np.random.default_rng(seed)
    return [photograph_subject(sprites, subject, scene, seed=rng) for scene in photo_scenes(rng, count)]


def save_photos(photos: list[Image.Image], folder: Path) -> None:
    """Write photos as 1.png, 2.png, … with a NOTICE about the drawing's source."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(photos, start=1):
        photo.save(folder / f"{number}.png", optimize=True)
    (folder / "NOTICE").write_text(NOTICE)
