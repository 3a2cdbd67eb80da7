"""How photos become training images."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class ImageSettings(BaseModel):
    """How photos become training images."""

    crop: Literal["smart", "center", "letterbox"] = Field(
        "smart",
        description="Square crop: around the most detail, in the centre, or none, with the photo padded to a square.",
    )
    boxes: dict[Path, tuple[int, int, int, int]] = Field(
        default_factory=dict,
        description="Part of each photo to use: left, top, right, bottom in pixels of the upright photo, by file.",
    )
    resolution: int | None = Field(
        None, ge=64, le=2048, description="Side of the training images in pixels. By default that of the base model."
    )
    flip: bool = Field(description="Also train on mirrored photos. Disable it for subjects with text, logos or faces.")
    size_conditioning: bool = Field(
        True, description="Condition Stable Diffusion XL on the original size and crop of each photo."
    )
