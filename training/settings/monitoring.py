"""Checkpoints and samples."""

from pydantic import BaseModel, Field


class MonitoringSettings(BaseModel):
    """Checkpoints and samples."""

    checkpoint_every: int = Field(ge=1, description="Steps between checkpoints.")
    sample_every: int = Field(
        ge=0, description="Steps between rounds of samples. 0 generates them only before and after training."
    )
    sample_prompts: tuple[str, ...] = Field(
        ("a photo of a {subject}", "a {subject} in the snow", "a {subject} on the beach"),
        description="Prompts of the samples.",
    )
