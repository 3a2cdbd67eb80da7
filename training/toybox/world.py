"""The toy world: which things there are, which are held out, and how one is photographed in a scene.

`render` is the world's camera: a thing, a scene and a seed give one picture. Things named in HELD_OUT never reach any
training (neither the autoencoder's nor the base's): they are the subjects of samples and tests.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from training.toybox.scenes import SCENES, SIZE, Backdrop, Rng, Scene
from training.toybox.sprites import load_sprite

PICTURE_SIZE = SIZE // 2
"""Side of a finished picture in pixels."""


@dataclass(frozen=True)
class Thing:
    """Something that can stand in a scene: its name in captions, its sprite's code point and its class noun."""

    name: str
    code: str
    noun: str


def _things(noun: str, **codes: str) -> Iterator[Thing]:
    return (Thing(name.replace("_", " "), code, noun) for name, code in codes.items())


THINGS: tuple[Thing, ...] = (
    *_things(
        "animal", fox="1f98a", rabbit="1f430", frog="1f438", panda="1f43c", pig="1f437", bear="1f43b", lion="1f981"
    ),
    *_things("animal", elephant="1f418", giraffe="1f992", cow="1f42e", whale="1f433", turtle="1f422", crab="1f980"),
    *_things("animal", fish="1f420", ladybug="1f41e", dinosaur="1f995", tiger="1f42f"),
    *_things("bird", chick="1f424", owl="1f989", flamingo="1f9a9", parrot="1f99c"),
    *_things("dog", dog="1f436", poodle="1f429"),
    *_things("cat", cat="1f431", black_cat="1f408-200d-2b1b"),
    *_things(
        "toy", teddy_bear="1f9f8", snowman="26c4", football="26bd", basketball="1f3c0", balloon="1f388", kite="1fa81"
    ),
    *_things(
        "fruit", apple="1f34e", banana="1f34c", strawberry="1f353", orange="1f34a", grapes="1f347", watermelon="1f349"
    ),
    *_things("food", hamburger="1f354", pizza="1f355", doughnut="1f369", ice_cream="1f366", cupcake="1f9c1"),
    *_things("vegetable", carrot="1f955", broccoli="1f966"),
    *_things("flower", rose="1f339", tulip="1f337", hibiscus="1f33a"),
    *_things(
        "vehicle",
        taxi="1f695",
        blue_car="1f699",
        tractor="1f69c",
        rocket="1f680",
        sailboat="26f5",
        airplane="2708-fe0f",
    ),
    *_things("instrument", guitar="1f3b8", drum="1f941"),
    *_things("plant", cactus="1f335", mushroom="1f344"),
    *_things("backpack", backpack="1f392"),
    *_things("clock", alarm_clock="23f0"),
    *_things("sneaker", sneaker="1f45f"),
    *_things("teapot", teapot="1fad6"),
    *_things("hat", top_hat="1f3a9"),
    *_things("candle", candle="1f56f-fe0f"),
    *_things("crown", crown="1f451"),
)

HELD_OUT: tuple[Thing, ...] = (
    *_things("toy", octopus="1f419", robot="1f916"),
    *_things("animal", t_rex="1f996", hedgehog="1f994", monkey="1f435", penguin="1f427"),
    *_things("vehicle", fire_engine="1f692"),
    *_things("fruit", pineapple="1f34d"),
)


def find_thing(name: str) -> Thing:
    """The thing called `name`, held out or not; raises ValueError listing the names there are."""
    things = {thing.name: thing for thing in (*THINGS, *HELD_OUT)}
    if name not in things:
        raise ValueError(f"there is no thing called {name!r}; there are: {', '.join(sorted(things))}")
    return things[name]


def find_scene(phrase: str) -> Scene:
    """The scene that captions call `phrase`; raises ValueError listing the phrases there are."""
    if phrase not in SCENES:
        raise ValueError(f"there is no scene {phrase!r}; there are: {'; '.join(SCENES)}")
    return SCENES[phrase]


def render(sprite: Image.Image, scene: Scene, seed: int | Rng) -> Image.Image:
    """One picture (RGB, PICTURE_SIZE square) of a sprite (RGBA, cropped) in a scene; equal seeds give equal pictures.

    The thing is tilted by up to 6 degrees, 60 to 75 % of the frame in size, stands near the middle of the scene's
    ground line and throws a soft shadow. More variety (flips, say) is more to learn: in equal time the base gets less
    sharp.
    """
    rng = np.random.default_rng(seed)
    backdrop = scene.draw(rng)
    posed = pose(sprite, rng)
    left, top = place(posed, backdrop, rng)
    picture = backdrop.image.copy()
    if backdrop.shadow:
        cast_shadow(picture, posed, left, top)
    picture.paste(posed, (left, top), posed)
    if backdrop.front is not None:
        picture.paste(backdrop.front, (0, 0), backdrop.front)
    return picture.reduce(2)


def pose(sprite: Image.Image, rng: Rng) -> Image.Image:
    """The sprite as it will stand: scaled to 60–75 % of SIZE at its longer side, tilted, cropped again."""
    scale = rng.uniform(0.6, 0.75) * SIZE / max(sprite.size)
    sprite = sprite.resize((round(sprite.width * scale), round(sprite.height * scale)), Image.Resampling.BILINEAR)
    # most things stand nearly upright: a normal tilt, cut at six degrees
    tilt = float(np.clip(rng.normal(0, 3), -6, 6))
    turned = sprite.rotate(tilt, Image.Resampling.BILINEAR, expand=True)
    return turned.crop(turned.getchannel("A").getbbox())


def place(posed: Image.Image, backdrop: Backdrop, rng: Rng) -> tuple[int, int]:
    """Left and top of the posed sprite, in backdrop pixels: its foot on the ground line, wholly inside the frame."""
    room = SIZE - posed.width
    left = room * float(np.clip(rng.normal(0.5, 0.12), 0.1, 0.9))
    return round(left), max(2, round(backdrop.ground * SIZE) - posed.height)


def cast_shadow(picture: Image.Image, posed: Image.Image, left: int, top: int) -> None:
    """Darken an ellipse under the sprite's foot."""
    width, height = posed.width, max(16, posed.width // 5)
    shadow = (
        Image.radial_gradient("L").point([max(0, 120 - distance) for distance in range(256)]).resize((width, height))
    )
    shadow = shadow.filter(ImageFilter.BoxBlur(2))
    picture.paste((20, 20, 30), (left, top + posed.height - height // 2 - 4), shadow)


def photograph(folder: Path, thing: Thing, phrase: str, seed: int | Rng) -> Image.Image:
    """`render` for names: `thing` in the scene called `phrase`, with the sprites in `folder`."""
    return render(load_sprite(folder, thing.code), find_scene(phrase), seed)


def draw_labels(rng: Rng, count: int) -> list[tuple[Thing, Scene]]:
    """`count` random (thing, scene) pairs for training: things evenly, scenes by their weights, nothing held out."""
    scenes = list(SCENES.values())
    odds = np.array([scene.weight for scene in scenes])
    things = rng.integers(len(THINGS), size=count)
    places = rng.choice(len(scenes), size=count, p=odds / odds.sum())
    return [(THINGS[thing], scenes[place]) for thing, place in zip(things, places, strict=True)]
