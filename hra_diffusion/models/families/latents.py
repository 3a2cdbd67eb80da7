"""Latents as the denoisers of several families take them."""

from typing import Any

from torch import Tensor


def scaled(vae: Any, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of ``(z − shift) · scale``, by the configuration of an AutoencoderKL."""
    shift, scale = getattr(vae.config, "shift_factor", None) or 0.0, vae.config.scaling_factor
    return (mean - shift) * scale, std * scale


def unet_multiple(denoiser: Any) -> int:
    """Return the number that the sides of a U-Net's latents must be multiples of: it halves them at every level."""
    return 2 ** (len(denoiser.config.down_block_types) - 1)
