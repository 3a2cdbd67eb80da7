"""How photos become training images."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class ImageSettings(BaseModel):
    """How photos become training images."""

    crop: Literal["bucket", "smart", "center", "letterbox"] = Field(
        description="bucket keeps the aspect ratio of photos, up to a small cut. The others make squares: around the "
        "most detail, in the centre, or padded without a cut.",
    )
    mask: Literal["off", "file", "alpha", "auto", "rembg"] = Field(
        "file",
        description="Masks of the subject: none, photo.mask.png beside photo.jpg, also transparency, and for photos "
        "without either also GrabCut (auto; needs OpenCV) or rembg (needs rembg).",
    )
    unmasked_weight: float = Field(0.1, ge=0, le=1, description="Weight of the loss outside the mask of a photo.")
    normalize_masked_area_loss: bool = Field(
        False, description="Divide the loss of a photo by its mean mask weight: small subjects count as large ones."
    )
    boxes: dict[Path, tuple[int, int, int, int]] = Field(
        default_factory=dict,
        description="Part of each photo to use: left, top, right, bottom in pixels of the upright photo, by file.",
    )
    resolution: int | None = Field(
        None,
        ge=64,
        le=2048,
        description="Side of square training images in pixels; buckets have about the same area. By default that of "
        "the base model.",
    )
    flip: bool = Field(description="Also train on mirrored photos. Disable it for subjects with text, logos or faces.")
    size_conditioning: bool = Field(
        True, description="Condition Stable Diffusion XL on the original size and crop of each photo."
    )
