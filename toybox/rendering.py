"""Rendering of labels: sprites posed in a scene, as an image and a mask. Equal seeds give equal images."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

from toybox.attributes import ATTRIBUTES, find_attribute
from toybox.drawing import SIZE, Rng
from toybox.labels import (
    ATTRIBUTE_SHARE,
    FIXED_HUE,
    RANDOM_HUE_SHARE,
    SECOND_OBJECT_COLOUR_SHARE,
    SECOND_OBJECT_SHARE,
    SURFACE_SHARE,
    Label,
    parse_second_object,
)
from toybox.objects import HELD_OUT, OBJECTS, find_object
from toybox.scenes import SCENES, Scene, find_scene
from toybox.scenes.backdrop import Backdrop
from toybox.sprites import load_sprite, rotate_hue

IMAGE_SIZE = SIZE // 2
"""Width and height of a finished image in pixels."""
FLIP_SHARE = 0.3
"""Share of sprites that are mirrored."""


def render_image(folder: Path, label: Label, seed: int | Rng) -> Image.Image:
    """Render a label with the sprites in ``folder`` as an RGB image of IMAGE_SIZE.

    Raises ValueError for an unknown object, scene or attribute.
    """
    return render_with_mask(folder, label, seed)[0]


def render_with_mask(folder: Path, label: Label, seed: int | Rng) -> tuple[Image.Image, Image.Image]:
    """Render a label as ``render_image`` does, and return the mask (L) of its objects too."""
    rng = np.random.default_rng(seed)
    first = load_sprite(folder, find_object(label.object).code)
    if label.hue_shift:
        first = rotate_hue(first, label.hue_shift)
    second = [
        apply_attribute(load_sprite(folder, entry.code), colour, rng)
        for entry, colour in parse_second_object(label.second_object)
    ]
    return compose_with_mask([apply_attribute(first, label.attribute, rng), *second], find_scene(label.scene), rng)


def apply_attribute(sprite: Image.Image, phrase: str, rng: Rng) -> Image.Image:
    """Apply an attribute to a sprite; "" leaves it unchanged."""
    return find_attribute(phrase).apply(sprite, rng) if phrase else sprite


def compose(sprites: list[Image.Image], scene: Scene, seed: int | Rng) -> Image.Image:
    """Render one or two sprites (RGBA, cropped) in a scene as an RGB image of IMAGE_SIZE."""
    return compose_with_mask(sprites, scene, seed)[0]


def compose_with_mask(sprites: list[Image.Image], scene: Scene, seed: int | Rng) -> tuple[Image.Image, Image.Image]:
    """Render one or two sprites as ``compose`` does, and return their mask (L) too.

    Sprites stand on the scene's ground line, one near the centre or two side by side, slightly tilted, some mirrored,
    with varying brightness and a soft shadow.
    """
    rng = np.random.default_rng(seed)
    backdrop = scene.draw(rng)
    image, mask = backdrop.image.copy(), Image.new("L", backdrop.image.size)
    scale = 1.0 if len(sprites) == 1 else 0.66
    order = rng.permutation(len(sprites))
    for index, sprite in enumerate(sprites):
        posed = pose(sprite, rng, scale)
        left, top = place(posed, backdrop, rng, (order[index] + 0.5) / len(sprites), len(sprites))
        if backdrop.shadow:
            cast_shadow(image, posed, left, top)
        if backdrop.mirror is not None:
            reflect(image, posed, left, top, backdrop.mirror)
        image.paste(posed, (left, top), posed)
        mask.paste(255, (left, top), posed.getchannel("A"))
    if backdrop.front is not None:
        image.paste(backdrop.front, (0, 0), backdrop.front)
        mask.paste(0, (0, 0), backdrop.front)
    return vary_brightness(image.reduce(2), rng), mask.reduce(2)


def pose(sprite: Image.Image, rng: Rng, scale: float = 1.0) -> Image.Image:
    """Resize, randomly mirror and tilt, and crop a sprite.

    The geometric mean of its sides is 64–78 % of SIZE and the longer side at most 86 % (both times ``scale``), so that
    a tall hat hardly shrinks its wearer.
    """
    geometric_mean = (sprite.width * sprite.height) ** 0.5
    factor = scale * SIZE * min(rng.uniform(0.64, 0.78) / geometric_mean, 0.86 / max(sprite.size))
    sprite = sprite.resize((round(sprite.width * factor), round(sprite.height * factor)), Image.Resampling.BILINEAR)
    if rng.random() < FLIP_SHARE:
        sprite = ImageOps.mirror(sprite)
    # a normal distribution, clipped at 8 degrees: most objects stand upright
    tilt = float(np.clip(rng.normal(0, 3), -8, 8))
    tilted = sprite.rotate(tilt, Image.Resampling.BILINEAR, expand=True)
    return tilted.crop(tilted.getchannel("A").getbbox())


def place(posed: Image.Image, backdrop: Backdrop, rng: Rng, centre: float = 0.5, count: int = 1) -> tuple[int, int]:
    """Return left and top of the posed sprite in backdrop pixels, standing on the ground line inside the frame.

    ``centre``: horizontal position as a fraction of the width; it varies less if ``count`` is above 1.
    """
    room = SIZE - posed.width
    if count == 1:
        left = room * float(np.clip(rng.normal(centre, 0.1), 0.1, 0.9))
    else:
        left = float(np.clip(centre * SIZE - posed.width / 2 + rng.normal(0, 4), 0, room))
    return round(left), max(2, round(backdrop.ground * SIZE) - posed.height)


def vary_brightness(image: Image.Image, rng: Rng) -> Image.Image:
    """Change the brightness randomly."""
    return ImageEnhance.Brightness(image).enhance(rng.uniform(0.88, 1.06))


def reflect(image: Image.Image, posed: Image.Image, left: int, top: int, glass: Image.Image) -> None:
    """Paste the mirrored sprite below its foot, with the mask ``glass`` as opacity."""
    below = Image.new("RGBA", image.size)
    below.paste(ImageOps.flip(posed), (left, top + posed.height - 2))
    image.paste(below, (0, 0), ImageChops.multiply(below.getchannel("A"), glass))


def cast_shadow(image: Image.Image, posed: Image.Image, left: int, top: int) -> None:
    """Paste a soft elliptical shadow under the sprite."""
    width, height = posed.width, max(16, posed.width // 5)
    fade = Image.radial_gradient("L").point([max(0, 120 - distance) for distance in range(256)])
    shadow = fade.resize((width, height)).filter(ImageFilter.BoxBlur(2))
    image.paste((20, 20, 30), (left, top + posed.height - height // 2 - 4), shadow)


def world_fingerprint() -> str:
    """Return a hash of the world's objects, scenes and attributes and of their frequencies."""
    shares = (
        RANDOM_HUE_SHARE, sorted(FIXED_HUE), ATTRIBUTE_SHARE, SURFACE_SHARE, SECOND_OBJECT_SHARE,
        SECOND_OBJECT_COLOUR_SHARE, FLIP_SHARE,
    )  # fmt: skip
    scenes = [(phrase, scene.weight) for phrase, scene in SCENES.items()]
    world = repr((OBJECTS, HELD_OUT, scenes, list(ATTRIBUTES), shares))
    # the class was called Thing when existing work folders were rendered
    return hashlib.sha256(world.replace("WorldObject(", "Thing(").encode()).hexdigest()
