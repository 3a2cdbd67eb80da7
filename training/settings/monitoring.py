"""Checkpoints, samples, validation and trackers."""

from typing import Literal

from pydantic import BaseModel, Field, model_validator

SAMPLE_STEPS = 15
"""Denoising steps of sample images: a second or two per round on the embedded base model."""
Tracker = Literal[
    "tensorboard", "wandb", "comet_ml", "mlflow", "aim", "clearml", "dvclive", "swanlab", "trackio",
]  # fmt: skip
"""Experiment trackers of Accelerate (``accelerate.utils.LoggerType``, accelerate 1.15)."""


class MonitoringSettings(BaseModel):
    """Checkpoints, samples, validation and trackers."""

    checkpoint_every: int = Field(ge=1, description="Steps between checkpoints.")
    keep_states: int = Field(
        2, ge=1, description="Training states to resume from that are kept. A finished run keeps only the newest one."
    )
    auto_resume: bool = Field(
        False,
        description="Continue after a crash or power cut once a page or a worker starts, as runs of the queue do.",
    )
    sample_every: int = Field(
        ge=0, description="Steps between rounds of samples. 0 generates them only before and after training."
    )
    sample_prompts: tuple[str, ...] = Field(
        ("a photo of a {subject}", "a {subject} in the snow", "a {subject} on the beach"),
        description="Prompts of the samples.",
    )
    validation: str = Field(
        "none",
        min_length=1,
        description="Photo that is held out for the validation loss: its file name, auto or none. Needs four photos.",
    )
    validation_every: int | None = Field(
        None, ge=1, description="Steps between two validation losses. By default those between checkpoints."
    )
    early_stop: int = Field(
        0, ge=0, description="Validation losses without a new minimum after which training stops. 0 disables it."
    )
    report_to: tuple[Tracker, ...] = Field((), description="Experiment trackers that get losses, rates and samples.")

    @model_validator(mode="after")
    def _check_early_stop(self) -> "MonitoringSettings":
        if self.early_stop and self.validation == "none":
            raise ValueError("early_stop needs a validation photo: set validation to auto or to a photo's file name")
        return self
