"""The subject, its photos and their captions."""

from pathlib import Path

from pydantic import BaseModel, Field, field_validator

from hra_diffusion.names import validated_name


class SubjectSettings(BaseModel):
    """The subject, its photos and their captions."""

    name: str = Field(description="Name of the adapter and of the run folder.")
    photos: tuple[Path, ...] = Field(min_length=1, description="Photos of the subject, or folders that contain them.")
    class_noun: str = Field(
        min_length=1, max_length=60, description='Class of the subject, in a word: "dog", "teapot", "toy".'
    )
    trigger: str = Field(
        "sks", min_length=1, max_length=40, description="Rare word that stands for the subject in prompts."
    )
    caption: str = Field(
        "a photo of a {subject}", description="Caption of photos without a .txt or .caption file beside them."
    )
    add_trigger: bool = Field(
        True, description='Prepend the subject to captions that lack the trigger: "sks dog, a dog sitting".'
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return validated_name(name)

    @field_validator("class_noun", "trigger")
    @classmethod
    def _check_text(cls, text: str) -> str:
        if not text.isprintable() or not text.strip():
            raise ValueError("must be plain words")
        return text.strip()

    @property
    def subject(self) -> str:
        """The subject as it appears in prompts, such as "sks dog"."""
        return f"{self.trigger} {self.class_noun}"
