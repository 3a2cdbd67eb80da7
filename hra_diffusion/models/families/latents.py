"""Latents as the denoisers of several families take them."""

from typing import Any

from torch import Tensor


def scaled(vae: Any, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of ``(z − shift) · scale``, by the configuration of an AutoencoderKL."""
    shift, scale = getattr(vae.config, "shift_factor", None) or 0.0, vae.config.scaling_factor
    return (mean - shift) * scale, std * scale
