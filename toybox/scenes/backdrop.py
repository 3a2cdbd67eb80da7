"""The backdrop that a scene draws, and the landscape that many scenes start from."""

from dataclasses import dataclass

from PIL import Image

from toybox.drawing import SIZE, Colour, Rng, gradient, jitter

SKY: tuple[Colour, Colour] = ((92, 170, 240), (205, 232, 250))


@dataclass(frozen=True)
class Backdrop:
    """A drawn scene without objects.

    ``image``: RGB, SIZE × SIZE. ``ground``: height at which objects stand, from 0 (top) to 1 (bottom). ``front``: RGBA
    image that covers the objects. ``shadow``: whether objects cast a shadow. ``mirror``: how strongly each pixel
    reflects the objects (L).
    """

    image: Image.Image
    ground: float
    front: Image.Image | None = None
    shadow: bool = True
    mirror: Image.Image | None = None


def landscape(rng: Rng, sky: tuple[Colour, Colour], ground: tuple[Colour, Colour], horizon: float) -> Image.Image:
    """Draw a gradient of the sky above one of the ground; ``horizon`` is a fraction of the height."""
    line = round(horizon * SIZE)
    image = gradient(jitter(rng, sky[0]), jitter(rng, sky[1]))
    image.paste(gradient(jitter(rng, ground[0]), jitter(rng, ground[1]), SIZE - line), (0, line))
    return image
