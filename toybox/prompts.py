"""The prompts of the DreamBooth benchmark (arXiv 2208.12242): 25 for live subjects, 25 for objects."""

from dataclasses import dataclass

from toybox.captions import phrase


@dataclass(frozen=True)
class Prompt:
    """A prompt: the phrase of a scene or of an attribute, "" for the other."""

    scene: str = ""
    attribute: str = ""

    @property
    def text(self) -> str:
        """The prompt as text: "a {subject} in the jungle"."""
        return phrase("{subject}", self.attribute, self.scene)


def _scenes(*phrases: str) -> tuple[Prompt, ...]:
    return tuple(Prompt(scene=phrase) for phrase in phrases)


def _attributes(*phrases: str) -> tuple[Prompt, ...]:
    return tuple(Prompt(attribute=phrase) for phrase in phrases)


SHARED_SCENES = _scenes(
    "in the jungle",
    "in the snow",
    "on the beach",
    "on a cobblestone street",
    "on top of pink fabric",
    "on top of a wooden floor",
    "with a city in the background",
    "with a mountain in the background",
    "with a blue house in the background",
    "on top of a purple rug in a forest",
)
SHARED_ATTRIBUTES = _attributes("red", "purple", "shiny", "wet", "cube shaped")

OBJECT_PROMPTS: tuple[Prompt, ...] = (
    *SHARED_SCENES,
    *_scenes(
        "with a wheat field in the background",
        "with a tree and autumn leaves in the background",
        "with the Eiffel Tower in the background",
        "floating on top of water",
        "floating in an ocean of milk",
        "on top of green grass with sunflowers around it",
        "on top of a mirror",
        "on top of the sidewalk in a crowded street",
        "on top of a dirt road",
        "on top of a white rug",
    ),
    *SHARED_ATTRIBUTES,
)

LIVE_PROMPTS: tuple[Prompt, ...] = (
    *SHARED_SCENES,
    *_attributes(
        "wearing a red hat",
        "wearing a santa hat",
        "wearing a rainbow scarf",
        "wearing a black top hat and a monocle",
        "in a chef outfit",
        "in a firefighter outfit",
        "in a police outfit",
        "wearing pink glasses",
        "wearing a yellow shirt",
        "in a purple wizard outfit",
    ),
    *SHARED_ATTRIBUTES,
)
