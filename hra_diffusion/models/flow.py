"""Flow matching: the straight paths from images to noise of Stable Diffusion 3 and FLUX.2.

A sample at noise level σ is ``(1 − σ) x + σ ε``, and the denoiser predicts ``ε − x`` (rectified flow, arXiv
2403.03206). The functions correspond to those of ``noise``, for discrete diffusion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hra_diffusion.errors import BaseModelError
from hra_diffusion.models.noise import FLOW, FLOW_SCHEDULER


@dataclass(frozen=True)
class FlowProcess:
    """A flow-matching process.

    Attributes:
        timesteps: number of timesteps T; a denoiser takes the time ``σ T``.
        shift: k in ``σ = k t / (1 + (k − 1) t)`` for t from 0 to 1: above 1 it moves times towards noise.
        by_size: μ of two sizes, ``(base_shift, max_shift, base_tokens, max_tokens)``, if the shift ``e^μ`` depends on
            the number of latent patches; ``shift`` then has no effect.
        patch: side in latent positions of the denoiser's patches.
    """

    timesteps: int
    shift: float
    by_size: tuple[float, float, int, int] | None = None
    patch: int = 1
    prediction_type = FLOW
    zero_snr = False

    def shift_for(self, height: int, width: int) -> float:
        """Return the shift for latents of this size. Source: ``calculate_shift`` of diffusers' pipelines."""
        if self.by_size is None:
            return self.shift
        base_shift, max_shift, base_tokens, max_tokens = self.by_size
        tokens = (height // self.patch) * (width // self.patch)
        return math.exp(base_shift + (max_shift - base_shift) * (tokens - base_tokens) / (max_tokens - base_tokens))


def of(scheduler: Any, patch: int) -> FlowProcess:
    """Return the process of a diffusers scheduler. Raises BaseModelError if it is not supported."""
    config = scheduler.config
    require(type(scheduler).__name__, config)
    by_size = None
    if config.use_dynamic_shifting:
        by_size = (config.base_shift, config.max_shift, config.base_image_seq_len, config.max_image_seq_len)
    return FlowProcess(config.num_train_timesteps, config.shift, by_size, patch)


def require(name: str, config: Mapping[str, Any]) -> None:
    """Raise BaseModelError unless a scheduler, given by class name and configuration, is one of flow matching."""
    reason = ""
    if name != FLOW_SCHEDULER:
        reason = f"is not {FLOW_SCHEDULER}, which this kind of base model is trained with"
    elif config.get("stochastic_sampling") or config.get("invert_sigmas"):
        reason = "samples stochastically or inverts its noise levels"
    elif config.get("use_dynamic_shifting") and config.get("time_shift_type", "exponential") != "exponential":
        reason = f"has the time shift type {config['time_shift_type']!r}, not exponential"
    if reason:
        raise BaseModelError(f"this base model can't be used: its noise scheduler, {name}, {reason}")


def override(scheduler: Any, prediction_type: str | None, rescale_zero_snr: bool | None) -> Any:
    """Return the scheduler. Raises BaseModelError if an option is given, since flow matching has neither."""
    if prediction_type or rescale_zero_snr is not None:
        given = "--prediction-type" if prediction_type else "--rescale-zero-snr"
        raise BaseModelError(f"{given} does not apply: this base model is trained by flow matching; leave it out")
    return scheduler
