"""The attributes of objects in the toy world (colours, surfaces, clothes), each registered under its phrase.

An attribute changes a cropped RGBA sprite, which may grow: a hat reaches above the head, drops fall below the feet.
The phrases of most are those of the DreamBooth benchmark (arXiv 2208.12242).
"""

from dataclasses import dataclass

from toybox.attributes import accessories, outfits, surface
from toybox.attributes.sprite import SpriteFunction
from toybox.drawing import COLOURS


@dataclass(frozen=True)
class Attribute:
    """An attribute: its phrase in captions, whether it precedes the noun, and the function that changes a sprite.

    Equal generators give equal sprites.
    """

    phrase: str
    precedes_noun: bool
    apply: SpriteFunction


COLOUR_NAMES = ("red", "purple", "blue", "green", "yellow")
"""The attributes that are colours."""

ATTRIBUTES: dict[str, Attribute] = {
    attribute.phrase: attribute
    for attribute in (
        *(Attribute(name, True, surface.tint(COLOURS[name])) for name in COLOUR_NAMES),
        Attribute("shiny", True, surface.shiny),
        Attribute("wet", True, surface.wet),
        Attribute("cube shaped", True, surface.cube),
        Attribute("wearing a red hat", False, accessories.red_hat),
        Attribute("wearing a santa hat", False, accessories.santa_hat),
        Attribute("wearing a black top hat and a monocle", False, accessories.top_hat),
        Attribute("wearing pink glasses", False, accessories.pink_glasses),
        Attribute("wearing a rainbow scarf", False, accessories.rainbow_scarf),
        Attribute("wearing a yellow shirt", False, outfits.yellow_shirt),
        Attribute("in a chef outfit", False, outfits.chef),
        Attribute("in a firefighter outfit", False, outfits.firefighter),
        Attribute("in a police outfit", False, outfits.police),
        Attribute("in a purple wizard outfit", False, outfits.wizard),
    )
}
"""All attributes by phrase. Sampling, and thus every rendered image, depends on their order."""


def find_attribute(phrase: str) -> Attribute:
    """Return the attribute called ``phrase`` in captions. Raises ValueError with the valid phrases."""
    if phrase not in ATTRIBUTES:
        raise ValueError(f"there is no attribute {phrase!r}; there are: {'; '.join(ATTRIBUTES)}")
    return ATTRIBUTES[phrase]
