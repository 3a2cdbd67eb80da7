"""The toy world: which things there are, which are held out, and how they are photographed in a scene.

`photograph` is the world's camera: a label (a thing, a scene, perhaps a look or something beside it) and a seed give
one picture. Things named in HELD_OUT never reach any training (neither the autoencoder's nor the base's): they are the
subjects of samples and tests. STRANGERS are drawn as often as their share says, half of them in colours of chance, and
named by their class noun alone: so a class noun stands for many outlines, and a new one is no surprise.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

from training.toybox.looks import COLOURED, LOOKS, find_look
from training.toybox.scenes import SCENES, SIZE, Backdrop, Rng, Scene
from training.toybox.sprites import load_sprite, recolour

PICTURE_SIZE = SIZE // 2
"""Side of a finished picture in pixels."""

STRANGER_SHARE = 0.25
LOOK_SHARE = 0.7
SURFACE_SHARE = 0.6
"""How many looks are of the whole surface (a colour, shiny, wet, cube shaped): in those every thing is to be learned
anew, while a hat is the same hat on all."""
BESIDE_SHARE = 0.05
BESIDE_LOOK_SHARE = 0.5
FLIP_SHARE = 0.3
STRANGER_HUES = 0.5
"""How many strangers are drawn in colours of chance."""


@dataclass(frozen=True)
class Thing:
    """Something that can stand in a scene: its name in captions, its sprite's code point and its class noun."""

    name: str
    code: str
    noun: str


@dataclass(frozen=True)
class Label:
    """What a picture shows: a thing's name, a scene's phrase, perhaps a look's phrase and the words of what is beside.

    Those words are a thing's name, with or without a colour: "apple", "red apple".
    """

    thing: str
    scene: str
    look: str = ""
    beside: str = ""


def _things(noun: str, **codes: str) -> Iterator[Thing]:
    return (Thing(name.replace("_", " "), code, noun) for name, code in codes.items())


THINGS: tuple[Thing, ...] = (
    *_things(
        "animal", fox="1f98a", rabbit="1f430", frog="1f438", panda="1f43c", pig="1f437", bear="1f43b", lion="1f981"
    ),
    *_things("animal", elephant="1f418", giraffe="1f992", cow="1f42e", whale="1f433", turtle="1f422", crab="1f980"),
    *_things("animal", fish="1f420", ladybug="1f41e", dinosaur="1f995", tiger="1f42f", koala="1f428", mouse="1f42d"),
    *_things("animal", hamster="1f439", horse="1f434", sheep="1f411", snail="1f40c", butterfly="1f98b", bee="1f41d"),
    *_things("animal", dolphin="1f42c", shark="1f988", zebra="1f993", unicorn="1f984", camel="1f42a"),
    *_things("animal", kangaroo="1f998", squirrel="1f43f-fe0f"),
    *_things("bird", chick="1f424", owl="1f989", flamingo="1f9a9", parrot="1f99c", duck="1f986", rooster="1f413"),
    *_things("bird", swan="1f9a2"),
    *_things("dog", dog="1f436", poodle="1f429"),
    *_things("cat", cat="1f431", black_cat="1f408-200d-2b1b"),
    *_things(
        "toy", teddy_bear="1f9f8", snowman="26c4", football="26bd", basketball="1f3c0", balloon="1f388", kite="1fa81"
    ),
    *_things(
        "fruit", apple="1f34e", banana="1f34c", strawberry="1f353", orange="1f34a", grapes="1f347", watermelon="1f349"
    ),
    *_things("fruit", lemon="1f34b", pear="1f350", cherry="1f352", peach="1f351"),
    *_things("food", hamburger="1f354", pizza="1f355", doughnut="1f369", ice_cream="1f366", cupcake="1f9c1"),
    *_things("food", cookie="1f36a", cheese="1f9c0", lollipop="1f36d", taco="1f32e"),
    *_things("vegetable", carrot="1f955", broccoli="1f966", tomato="1f345", corn="1f33d", pumpkin="1f383"),
    *_things("flower", rose="1f339", tulip="1f337", hibiscus="1f33a", daisy="1f33c"),
    *_things(
        "vehicle",
        taxi="1f695",
        blue_car="1f699",
        tractor="1f69c",
        rocket="1f680",
        sailboat="26f5",
        airplane="2708-fe0f",
        bus="1f68c",
        helicopter="1f681",
        train="1f682",
    ),
    *_things("instrument", guitar="1f3b8", drum="1f941", trumpet="1f3ba", violin="1f3bb"),
    *_things("plant", cactus="1f335", mushroom="1f344"),
    *_things("backpack", backpack="1f392"),
    *_things("clock", alarm_clock="23f0"),
    *_things("sneaker", sneaker="1f45f"),
    *_things("boot", boot="1f97e"),
    *_things("teapot", teapot="1fad6"),
    *_things("hat", top_hat="1f3a9"),
    *_things("candle", candle="1f56f-fe0f"),
    *_things("crown", crown="1f451"),
    *_things("vase", vase="1f3fa"),
    *_things("bowl", bowl="1f963"),
    *_things("can", can="1f96b"),
    *_things("glasses", glasses="1f453"),
)

HELD_OUT: tuple[Thing, ...] = (
    *_things("toy", octopus="1f419", robot="1f916"),
    *_things("animal", t_rex="1f996", hedgehog="1f994", monkey="1f435", penguin="1f427"),
    *_things("vehicle", fire_engine="1f692"),
    *_things("fruit", pineapple="1f34d"),
)

STRANGER_CODES = {
    "animal": """
        1f400 1f401 1f402 1f403 1f404 1f405 1f406 1f407 1f409 1f40a 1f40b 1f40d 1f40e 1f40f 1f410 1f416 1f417 1f41b
        1f41c 1f41f 1f421 1f42b 1f432 1f43a 1f577-fe0f 1f98c 1f98d 1f98e 1f98f 1f990 1f991 1f997 1f999 1f99b 1f99d
        1f99e 1f9a1 1f9a3 1f9a5 1f9a6 1f9a7 1f9a8 1f9ab 1f9ac 1f9ad 1f982 1f987 1face 1facf 1fabc 1fab2 1fab3 1fab1
        1f43b-200d-2744-fe0f
    """,
    "bird": "1f423 1f425 1f426 1f983 1f985 1f99a 1f9a4 1f54a-fe0f 1f414 1fabf",
    "dog": "1f415 1f9ae",
    "cat": "1f408 1f63a",
    "toy": """
        1f3b1 1f3b2 1f3c8 1f3c9 1f3d0 26be 1f94e 1f94f 1fa80 1fa85 1fa86 1f9e9 1f381 1f47b 1f47d 1f47e 1f6f8 1f6f9
        1f6fc 1f9f6 1f4a9 1f6f7 1f579-fe0f 1f3ae
    """,
    "fruit": "1f348 1f34f 1f95d 1f965 1f96d 1fad0 1fad2",
    "food": """
        1f35f 1f32f 1f950 1f956 1f95e 1f95f 1f960 1f967 1f968 1f96a 1f96f 1f9c7 1f9c8 1f359 1f363 1f361 1f36b 1f36c
        1f36e 1f36f 1f370 1f382 1f35e 1f357 1f356 1f969 1f953 1f37f 1f32d
    """,
    "vegetable": "1f346 1f952 1f954 1f96c 1f9c4 1f9c5 1f336-fe0f 1fad1 1f951 1f95c 1fad8",
    "flower": "1f338 1f33b 1f940 1fab7 1f490 1fabb",
    "vehicle": """
        1f683 1f684 1f686 1f68a 1f68e 1f690 1f691 1f693 1f694 1f696 1f697 1f698 1f69a 1f69b 1f6a2 1f6a4 1f6b2 1f6f4
        1f6f5 1f6f6 1f6fa 1f6fb 1f3cd-fe0f 1f3ce-fe0f 1f6e9-fe0f 1f6e5-fe0f 26f4-fe0f 1f69d
    """,
    "instrument": "1f3b7 1f3b9 1fa95 1fa97 1fa98 1fa87 1f4ef 1f514",
    "plant": "1f331 1f332 1f333 1f334 1f340 1f341 1fab4 1f384",
    "clock": "1f570-fe0f 23f1-fe0f 23f2-fe0f 231a",
    "sneaker": "1f45e",
    "boot": "1f462",
    "hat": "1f452 1f393 1f9e2 1fa96",
    "bowl": "1f35c 1f957 1f35a",
    "vase": "26b1-fe0f 1fad9",
    "glasses": "1f576-fe0f 1f97d",
}

STRANGERS: tuple[Thing, ...] = tuple(
    Thing(f"{noun} {code}", code, noun) for noun, codes in STRANGER_CODES.items() for code in codes.split()
)
"""Other things of the same class nouns; their names stand in labels, never in captions."""

_BY_NAME = {thing.name: thing for thing in (*THINGS, *HELD_OUT, *STRANGERS)}


def find_thing(name: str) -> Thing:
    """The thing called `name`, held out or not; raises ValueError listing the names there are."""
    if name not in _BY_NAME:
        names = sorted(thing.name for thing in (*THINGS, *HELD_OUT))
        raise ValueError(f"there is no thing called {name!r}; there are: {', '.join(names)}")
    return _BY_NAME[name]


def find_scene(phrase: str) -> Scene:
    """The scene that captions call `phrase`; raises ValueError listing the phrases there are."""
    if phrase not in SCENES:
        raise ValueError(f"there is no scene {phrase!r}; there are: {'; '.join(SCENES)}")
    return SCENES[phrase]


def photograph(folder: Path, label: Label, seed: int | Rng) -> Image.Image:
    """One picture of what `label` says, with the sprites in `folder`; equal seeds give equal pictures.

    Raises ValueError for a thing, scene or look that is not of this world.
    """
    return expose(folder, label, seed)[0]


def expose(folder: Path, label: Label, seed: int | Rng) -> tuple[Image.Image, Image.Image]:
    """What `photograph` gives, and where in it things are (L, of the same size)."""
    rng = np.random.default_rng(seed)
    thing = find_thing(label.thing)
    sprite = load_sprite(folder, thing.code)
    if thing in STRANGERS and rng.random() < STRANGER_HUES:
        sprite = recolour(sprite, rng.uniform(0, 1))
    company = [dress(load_sprite(folder, other.code), colour, rng) for other, colour in read_beside(label.beside)]
    return compose([dress(sprite, label.look, rng), *company], find_scene(label.scene), rng)


def read_beside(words: str) -> list[tuple[Thing, str]]:
    """What stands beside, as a thing and its colour ("" for its own): one, or none for no words."""
    if not words:
        return []
    if words in {thing.name for thing in THINGS}:
        return [(find_thing(words), "")]
    colour, _, name = words.partition(" ")
    return [(find_thing(name), colour)]


def dress(sprite: Image.Image, look: str, rng: Rng) -> Image.Image:
    """The sprite in a look, or as it is."""
    return find_look(look).wear(sprite, rng) if look else sprite


def render(sprites: list[Image.Image], scene: Scene, seed: int | Rng) -> Image.Image:
    """One picture (RGB, PICTURE_SIZE square) of one or two sprites (RGBA, cropped) in a scene."""
    return compose(sprites, scene, seed)[0]


def compose(sprites: list[Image.Image], scene: Scene, seed: int | Rng) -> tuple[Image.Image, Image.Image]:
    """One picture (RGB, PICTURE_SIZE square) of one or two sprites (RGBA, cropped) in a scene, and where they are (L).

    They stand on the scene's ground line, one near the middle or two side by side, a little tilted, some mirrored, in
    stronger or weaker light, and throw a soft shadow.
    """
    rng = np.random.default_rng(seed)
    backdrop = scene.draw(rng)
    picture, covered = backdrop.image.copy(), Image.new("L", backdrop.image.size)
    share = 1.0 if len(sprites) == 1 else 0.66
    order = rng.permutation(len(sprites))
    for index, sprite in enumerate(sprites):
        posed = pose(sprite, rng, share)
        left, top = place(posed, backdrop, rng, (order[index] + 0.5) / len(sprites), len(sprites))
        if backdrop.shadow:
            cast_shadow(picture, posed, left, top)
        if backdrop.mirror is not None:
            reflect(picture, posed, left, top, backdrop.mirror)
        picture.paste(posed, (left, top), posed)
        covered.paste(255, (left, top), posed.getchannel("A"))
    if backdrop.front is not None:
        picture.paste(backdrop.front, (0, 0), backdrop.front)
        covered.paste(0, (0, 0), backdrop.front)
    return light(picture.reduce(2), rng), covered.reduce(2)


def pose(sprite: Image.Image, rng: Rng, share: float = 1.0) -> Image.Image:
    """The sprite as it will stand: scaled, perhaps mirrored, tilted, cropped.

    The mean of its sides (their product's root) is 64–78 % of SIZE, the longer at most 86 % (both times `share`): what
    wears a tall hat is not much smaller for it.
    """
    scale = share * SIZE * min(rng.uniform(0.64, 0.78) / (sprite.width * sprite.height) ** 0.5, 0.86 / max(sprite.size))
    sprite = sprite.resize((round(sprite.width * scale), round(sprite.height * scale)), Image.Resampling.BILINEAR)
    if rng.random() < FLIP_SHARE:
        sprite = ImageOps.mirror(sprite)
    # most things stand nearly upright: a normal tilt, cut at eight degrees
    tilt = float(np.clip(rng.normal(0, 3), -8, 8))
    turned = sprite.rotate(tilt, Image.Resampling.BILINEAR, expand=True)
    return turned.crop(turned.getchannel("A").getbbox())


def place(posed: Image.Image, backdrop: Backdrop, rng: Rng, centre: float = 0.5, count: int = 1) -> tuple[int, int]:
    """Left and top of the posed sprite, in backdrop pixels: its foot on the ground line, wholly inside the frame.

    `centre` is where its middle belongs, as a part of the width; one of `count` things strays the less.
    """
    room = SIZE - posed.width
    if count == 1:
        left = room * float(np.clip(rng.normal(centre, 0.1), 0.1, 0.9))
    else:
        left = float(np.clip(centre * SIZE - posed.width / 2 + rng.normal(0, 4), 0, room))
    return round(left), max(2, round(backdrop.ground * SIZE) - posed.height)


def light(picture: Image.Image, rng: Rng) -> Image.Image:
    """The picture in a little more or less light."""
    return ImageEnhance.Brightness(picture).enhance(rng.uniform(0.88, 1.06))


def reflect(picture: Image.Image, posed: Image.Image, left: int, top: int, glass: Image.Image) -> None:
    """Show the posed sprite upside down below its foot, as far and as clearly as the mask `glass` says."""
    below = Image.new("RGBA", picture.size)
    below.paste(ImageOps.flip(posed), (left, top + posed.height - 2))
    picture.paste(below, (0, 0), ImageChops.multiply(below.getchannel("A"), glass))


def cast_shadow(picture: Image.Image, posed: Image.Image, left: int, top: int) -> None:
    """Darken an ellipse under the sprite's foot."""
    width, height = posed.width, max(16, posed.width // 5)
    shadow = (
        Image.radial_gradient("L").point([max(0, 120 - distance) for distance in range(256)]).resize((width, height))
    )
    shadow = shadow.filter(ImageFilter.BoxBlur(2))
    picture.paste((20, 20, 30), (left, top + posed.height - height // 2 - 4), shadow)


def fingerprint() -> str:
    """A short text that differs when the world's things, scenes or looks do, or how often each is met."""
    shares = (STRANGER_SHARE, STRANGER_HUES, LOOK_SHARE, SURFACE_SHARE, BESIDE_SHARE, BESIDE_LOOK_SHARE, FLIP_SHARE)
    scenes = [(phrase, scene.weight) for phrase, scene in SCENES.items()]
    world = repr((THINGS, STRANGERS, HELD_OUT, scenes, list(LOOKS), shares))
    return hashlib.sha256(world.encode()).hexdigest()


def draw_pairs(rng: Rng, phrases: Iterable[str], count: int) -> list[tuple[str, str]]:
    """`count` different pairs of a thing's name and one of the phrases (of scenes, or of looks)."""
    pairs = list(product((thing.name for thing in THINGS), phrases))
    return [pairs[index] for index in rng.choice(len(pairs), count, replace=False).tolist()]


UNSEEN = frozenset(draw_pairs(np.random.default_rng(20_27), SCENES, 200))
"""What the base is asked for and never shown: its training leaves out every picture of these things in these scenes."""


def is_unseen(label: Label) -> bool:
    """Whether a picture shows a thing in a scene that are an UNSEEN pair."""
    shown = [label.thing, *(thing.name for thing, _ in read_beside(label.beside))]
    return any((name, label.scene) in UNSEEN for name in shown)


def draw_labels(rng: Rng, count: int) -> list[Label]:
    """`count` random labels for training: things evenly, scenes by their weights, nothing held out."""
    return [draw_label(rng) for _ in range(count)]


def draw_label(rng: Rng) -> Label:
    """A thing or a stranger in a scene; some wear a look, some have another thing beside them."""
    phrases, odds = list(SCENES), np.array([scene.weight for scene in SCENES.values()])
    scene = phrases[rng.choice(len(phrases), p=odds / odds.sum())]
    things = STRANGERS if rng.random() < STRANGER_SHARE else THINGS
    name = things[rng.integers(len(things))].name
    chance = rng.random()
    if chance < LOOK_SHARE:
        return Label(name, scene, look=draw_look(rng))
    if chance < LOOK_SHARE + BESIDE_SHARE:
        return Label(name, scene, beside=draw_beside(rng))
    return Label(name, scene)


def draw_look(rng: Rng) -> str:
    """A look's phrase: of the whole surface as often as their share says, or something worn."""
    surface = rng.random() < SURFACE_SHARE
    phrases = [phrase for phrase, look in LOOKS.items() if look.before == surface]
    return phrases[rng.integers(len(phrases))]


def draw_beside(rng: Rng) -> str:
    """The words of something that stands beside: a thing, half of them coloured."""
    other = THINGS[rng.integers(len(THINGS))].name
    return f"{COLOURED[rng.integers(len(COLOURED))]} {other}" if rng.random() < BESIDE_LOOK_SHARE else other
