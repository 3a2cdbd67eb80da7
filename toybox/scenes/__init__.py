"""The scenes of the toy world, each registered under the phrase that names it in captions.

The phrases of the first twenty are those of the DreamBooth benchmark (arXiv 2208.12242).
"""

from collections.abc import Callable
from dataclasses import dataclass

from toybox.drawing import COLOURS, Rng
from toybox.scenes import liquids, nature, surfaces, town
from toybox.scenes.backdrop import Backdrop


@dataclass(frozen=True)
class Scene:
    """A scene: its phrase in captions, the function that draws it, and its relative frequency in training.

    Equal generators give equal backdrops.
    """

    phrase: str
    draw: Callable[[Rng], Backdrop]
    weight: float = 1.0


SCENES: dict[str, Scene] = {
    scene.phrase: scene
    for scene in (
        Scene("in the jungle", nature.jungle),
        Scene("in the snow", nature.snow),
        Scene("on the beach", nature.beach),
        Scene("on a cobblestone street", town.cobblestone),
        Scene("on top of pink fabric", surfaces.fabric),
        Scene("on top of a wooden floor", surfaces.wooden_floor),
        Scene("with a city in the background", town.city),
        Scene("with a mountain in the background", nature.mountain),
        Scene("with a blue house in the background", town.blue_house),
        Scene("on top of a purple rug in a forest", nature.purple_rug),
        Scene("on top of green grass with sunflowers around it", nature.sunflowers),
        Scene("with the Eiffel Tower in the background", town.eiffel_tower),
        Scene("floating on top of water", liquids.water),
        Scene("with a wheat field in the background", nature.wheat_field),
        Scene("with a tree and autumn leaves in the background", nature.autumn),
        Scene("floating in an ocean of milk", liquids.milk),
        Scene("on top of a mirror", surfaces.mirror),
        Scene("on top of the sidewalk in a crowded street", town.crowded_street),
        Scene("on top of a dirt road", nature.dirt_road),
        Scene("on top of a white rug", surfaces.white_rug),
        # half of all images: outlines are learned best on plain backgrounds
        *(
            Scene(f"on {'an' if name == 'orange' else 'a'} {name} background", surfaces.plain(colour), weight=2.5)
            for name, colour in COLOURS.items()
        ),
    )
}
"""All scenes by phrase. Sampling, and thus every rendered image, depends on their order."""


def find_scene(phrase: str) -> Scene:
    """Return the scene called ``phrase`` in captions. Raises ValueError with the valid phrases."""
    if phrase not in SCENES:
        raise ValueError(f"there is no scene {phrase!r}; there are: {'; '.join(SCENES)}")
    return SCENES[phrase]
