"""The denoising loss, and the noise and timesteps that it is computed for."""

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator


class ObjectiveSettings(BaseModel):
    """The denoising loss, and the noise and timesteps that it is computed for."""

    timestep_sampling: Literal["power", "uniform", "logit-normal", "mode", "cosine-map"] = Field(
        "power",
        description="Distribution of the timesteps: power (see timestep_bias), uniform, or one of those that Stable "
        "Diffusion 3 was trained with.",
    )
    timestep_bias: float = Field(
        1.0,
        gt=0,
        le=4,
        description="Exponent of the power distribution. 1 is uniform; lower values sample noisier timesteps.",
    )
    logit_mean: float = Field(
        0.0, ge=-5, le=5, description="Mean of the logit-normal distribution. Positive values sample noisier timesteps."
    )
    logit_std: float = Field(1.0, gt=0, le=5, description="Standard deviation of the logit-normal distribution.")
    mode_scale: float = Field(
        1.29,
        ge=-1,
        le=1.75,
        description="Scale of the mode distribution: positive values sample the middle timesteps more often.",
    )
    min_timestep: int = Field(0, ge=0, le=999, description="Least noisy timestep that is sampled.")
    max_timestep: int = Field(1000, ge=1, le=1000, description="Timesteps from this one on are not sampled.")
    loss_type: Literal["l2", "huber", "smooth-l1"] = Field(
        "l2",
        description="Mean squared error, or an error that grows linearly beyond huber_c, for photos with flaws: "
        "pseudo-Huber (in proportion to huber_c) or smooth L1.",
    )
    huber_schedule: Literal["constant", "exponential", "snr"] = Field(
        "snr", description="How huber_c depends on the timestep: from 1 without noise to huber_c, or constant."
    )
    huber_c: float = Field(0.1, gt=0, le=1, description="Threshold between the squared and the linear error.")
    min_snr_gamma: float = Field(0.0, ge=0, description="γ of the min-SNR loss weighting. 0 disables it; 5 is usual.")
    min_snr_formula: Literal["standard", "plus-one"] = Field(
        description="Min-SNR weight for v-prediction: min(SNR, γ)/(SNR + 1) or (min(SNR, γ) + 1)/(SNR + 1)."
    )
    debiased_estimation: bool = Field(
        False, description="Weight the loss by 1/√SNR: noisy timesteps, and so the composition, count more."
    )
    noise_offset: float = Field(
        0.0, ge=0, le=1, description="Scale of noise added per channel, for darker and brighter images. 0.05 is usual."
    )
    multires_noise_iterations: int = Field(
        0, ge=0, le=10, description="Number of resolutions in multi-resolution noise. 0 disables it; 6 is usual."
    )
    multires_noise_discount: float = Field(
        0.3, gt=0, lt=1, description="Factor of each lower resolution in multi-resolution noise."
    )
    input_perturbation: float = Field(
        0.0, ge=0, le=1, description="Scale of noise added to the denoiser's input but not to its target. 0.1 is usual."
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

    @model_validator(mode="after")
    def _check_objective(self) -> Self:
        if self.min_timestep >= self.max_timestep:
            raise ValueError(f"min_timestep {self.min_timestep} must be below max_timestep {self.max_timestep}")
        if self.min_snr_gamma and self.debiased_estimation:
            raise ValueError("min_snr_gamma and debiased_estimation both weight the loss by SNR: use one of them")
        if self.noise_offset and self.multires_noise_iterations:
            raise ValueError("noise_offset and multires_noise_iterations both add low frequencies: use one of them")
        return self
