"""The frozen base model."""

from typing import Literal

from pydantic import BaseModel, Field, field_validator

from hra_diffusion.models.loading import DTYPES
from hra_diffusion.models.sources import TOYBOX


class BaseModelSettings(BaseModel):
    """The frozen base model."""

    base: str = Field(TOYBOX, description="Base model: toybox, a diffusers folder, a .safetensors file or a hub id.")
    base_revision: str | None = Field(
        None, description="Branch, tag or commit of a base model on the hub. By default its main branch."
    )
    base_variant: str | None = Field(
        None, description="Variant of the base model's weights, such as fp16. By default those without a variant."
    )
    dtype: str = Field("float32", description=f"Precision of the frozen base model: {', '.join(DTYPES)}.")
    base_weights: Literal["full", "int8", "nf4"] = Field(
        "full",
        description="Storage of the frozen denoiser weights: full precision, 8 bits or 4 bits. Fewer bits save memory.",
    )
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = Field(
        None, description="Overrides the prediction type saved with the base model."
    )
    rescale_zero_snr: bool | None = Field(None, description="Overrides whether the base model has zero terminal SNR.")

    @field_validator("dtype")
    @classmethod
    def _check_dtype(cls, dtype: str) -> str:
        if dtype not in DTYPES:
            raise ValueError(f"use one of {', '.join(DTYPES)}")
        return dtype
