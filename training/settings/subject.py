"""The subjects, their photos and their captions."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from hra_diffusion.names import validated_name


def _plain_words(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("must be plain words")
    return text.strip()


ClassNoun = Annotated[str, Field(min_length=1, max_length=60), AfterValidator(_plain_words)]
Trigger = Annotated[str, Field(min_length=1, max_length=40), AfterValidator(_plain_words)]


class Concept(BaseModel):
    """One of several subjects of a run. Without a ``caption`` of its own it has that of the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    photos: Annotated[tuple[Path, ...], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)] = (
        Field(min_length=1, description="Photos of the subject, or folders that contain them.")
    )
    class_noun: ClassNoun = Field(description="Class of the subject.")
    trigger: Trigger = Field(description="Rare word that stands for the subject in prompts.")
    caption: str | None = Field(default=None, description="Caption of photos without a caption file.")
    repeats: int = Field(default=1, ge=1, le=100, description="How often an epoch contains each photo.")

    @property
    def subject(self) -> str:
        """The subject as it appears in prompts, such as "sks dog"."""
        return f"{self.trigger} {self.class_noun}"


def _distinct(concepts: tuple[Concept, ...]) -> tuple[Concept, ...]:
    triggers = [concept.trigger.casefold() for concept in concepts]
    for number, trigger in enumerate(triggers):
        if trigger in triggers[:number]:
            raise ValueError(f"two concepts have the trigger {concepts[number].trigger!r}; give each a word of its own")
    return concepts


class SubjectSettings(BaseModel):
    """The subjects, their photos and their captions."""

    name: str = Field(description="Name of the adapter and of the run folder.")
    photos: tuple[Path, ...] = Field(min_length=1, description="Photos of the subject, or folders that contain them.")
    class_noun: ClassNoun = Field(description='Class of the subject, in a word: "dog", "teapot", "toy".')
    trigger: Trigger = Field("sks", description="Rare word that stands for the subject in prompts.")
    concepts: Annotated[tuple[Concept, ...], Field(max_length=20), AfterValidator(_distinct)] = Field(
        (),
        description="Several subjects, instead of photos, class noun and trigger: a YAML file with the photos, "
        "class_noun and trigger of each.",
    )
    caption: str = Field(
        "a photo of a {subject}", description="Caption of photos without a .txt or .caption file beside them."
    )
    caption_prefix: str = Field(
        "", max_length=300, description='Text before every caption, with its own comma: "a drawing of {subject},".'
    )
    caption_suffix: str = Field("", max_length=300, description="Text after every caption.")
    add_trigger: bool = Field(
        True, description='Prepend the subject to captions that lack the trigger: "sks dog, a dog sitting".'
    )
    shuffle_captions: bool = Field(
        False, description="Train with the comma-separated parts of captions in random order. For captions of tags."
    )
    keep_tokens: int = Field(
        1, ge=0, le=100, description="Number of parts at the start of a caption that shuffling leaves in their place."
    )
    caption_dropout: float = Field(
        ge=0, lt=1, description="Share of the photos that are trained with an empty caption, as guidance uses it."
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return validated_name(name)

    @property
    def subjects(self) -> tuple[Concept, ...]:
        """The concepts, or the only subject as one."""
        return self.concepts or (Concept(photos=self.photos, class_noun=self.class_noun, trigger=self.trigger),)

    @property
    def subject(self) -> str:
        """The first subject as it appears in prompts, such as "sks dog"."""
        return self.subjects[0].subject
