"""The denoising loss."""

from typing import Literal

from pydantic import BaseModel, Field


class ObjectiveSettings(BaseModel):
    """The denoising loss."""

    timestep_bias: float = Field(
        1.0,
        gt=0,
        le=4,
        description="Exponent of the timestep distribution. 1 is uniform; lower values sample noisier timesteps.",
    )
    min_snr_gamma: float = Field(0.0, ge=0, description="γ of the min-SNR loss weighting. 0 disables it; 5 is usual.")
    min_snr_formula: Literal["standard", "plus-one"] = Field(
        description="Min-SNR weight for v-prediction: min(SNR, γ)/(SNR + 1) or (min(SNR, γ) + 1)/(SNR + 1)."
    )
    prior_loss_weight: float = Field(ge=0, le=10, description="Weight of the prior preservation loss. 0 disables it.")
    num_class_images: int = Field(
        ge=1, le=1000, description="Class images for prior preservation, generated once by the base model."
    )
    preservation: Literal["class-images", "base-output"] = Field(
        "class-images",
        description="What the prior preservation loss compares with: class images, or the base model's own output for "
        "the captions with the class noun instead of the subject, which needs no images.",
    )
