"""The noise process of a base model: its betas, its prediction type, and whether it has zero terminal SNR.

These belong to the weights. The other options of a saved scheduler (solver, sigmas, timestep spacing, steps_offset,
thresholding, clip_sample, …) concern sampling and are ignored, so that the same weights give the same image whichever
scheduler they were saved with. Timestep spacing is always "trailing", as zero terminal SNR requires (Lin et al., arXiv
2305.08891): sampling starts at the last training timestep, and ``steps_offset`` does not apply. Latents have no fixed
range and are never clipped.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hra_diffusion.errors import BaseModelError

if TYPE_CHECKING:
    from torch import Tensor

ZERO_SNR = "rescale_betas_zero_snr"
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
DISCRETE_SCHEDULERS = {
    "DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler",
    "SASolverScheduler", "UniPCMultistepScheduler",
}  # fmt: skip
"""Schedulers in diffusers with a discrete diffusion process. The others define their own noise levels or timesteps."""
DISTILLED_SCHEDULERS = ("LCMScheduler", "TCDScheduler")
FLOW_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
"""The scheduler in diffusers of base models trained by flow matching (see ``flow``)."""
FLOW = "flow"
"""The prediction type that adapter files record for them."""


@dataclass(frozen=True, eq=False)
class NoiseProcess:
    """A discrete diffusion process.

    Attributes:
        betas: noise variance of each timestep (T,).
        prediction_type: what the UNet predicts, one of ``PREDICTION_TYPES``.
        zero_snr: whether the betas are rescaled to zero terminal SNR.
    """

    betas: Tensor
    prediction_type: str
    zero_snr: bool

    @property
    def timesteps(self) -> int:
        """Number of timesteps T."""
        return len(self.betas)

    @functools.cached_property
    def alphas_cumprod(self) -> Tensor:
        """Cumulative product of 1 − beta, ᾱ (T,); with zero terminal SNR the last one is exactly 0."""
        return self.scheduler("DDIMScheduler").alphas_cumprod

    def scheduler(self, kind: str, **options: Any) -> Any:
        """Create a scheduler of this process by its class name in diffusers. ``options`` override class defaults."""
        import diffusers

        return getattr(diffusers, kind)(
            num_train_timesteps=len(self.betas),
            trained_betas=self.betas.tolist(),
            prediction_type=self.prediction_type,
            rescale_betas_zero_snr=self.zero_snr,
            timestep_spacing="trailing",
            **options,
        )


def of(scheduler: Any) -> NoiseProcess:
    """Return the noise process of a diffusers scheduler. Raises BaseModelError if it is not supported."""
    require(_class_name(scheduler), scheduler.config)
    settings = process_settings(scheduler)
    if settings == {"prediction_type": "epsilon", "zero_snr": True}:
        raise BaseModelError(
            "the base model's noise scheduler combines zero terminal SNR with noise prediction, which is undefined at "
            "the last timestep: add --prediction-type v_prediction if the base model predicts velocity, else "
            "--no-rescale-zero-snr"
        )
    return NoiseProcess(scheduler.betas.cpu(), **settings)


def process_settings(scheduler: Any) -> dict[str, Any]:
    """Return "prediction_type" and "zero_snr" of a scheduler, as recorded in adapter files; unsupported ones too."""
    if type(scheduler).__name__ == FLOW_SCHEDULER:
        return {"prediction_type": FLOW, "zero_snr": False}
    config, betas = scheduler.config, getattr(scheduler, "betas", None)
    rescaled = betas is not None and bool(betas[-1] >= 1)  # rescaled betas may be given as trained_betas
    return {"prediction_type": config.get("prediction_type", ""), "zero_snr": rescaled or bool(config.get(ZERO_SNR))}


def _class_name(scheduler: Any) -> str:
    """Return the class name of a scheduler; for a subclass of a scheduler in DISCRETE_SCHEDULERS, that scheduler's."""
    names = [kind.__name__ for kind in type(scheduler).__mro__]
    return next((name for name in names if name in DISCRETE_SCHEDULERS), names[0])


def require(name: str, config: Mapping[str, Any]) -> None:
    """Raise BaseModelError unless a scheduler, given by class name and configuration, has a discrete process."""
    if name in DISTILLED_SCHEDULERS:
        reason = "samples a few fixed timesteps, for a distilled model: use the base model it was distilled from"
    elif name not in DISCRETE_SCHEDULERS:
        reason = "has no discrete diffusion process with betas, as Stable Diffusion's schedulers have"
    elif config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        reason = "is set up for flow matching"
    elif config.get("timestep_type", "discrete") != "discrete":
        reason = "has continuous timesteps (EDM)"
    elif config.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
        reason = f"predicts {config['prediction_type']!r}, not one of {', '.join(PREDICTION_TYPES)}"
    else:
        return
    raise BaseModelError(f"this base model can't be used: its noise scheduler, {name}, {reason}")


def load_scheduler(name: str, config: dict[str, Any]) -> Any:
    """Create the scheduler of a saved base model from its class name and configuration.

    If it needs a package that is not installed (scipy, torchsde), return DDIM with the same noise process.
    """
    import diffusers

    try:
        return getattr(diffusers, name).from_config(config)
    except ImportError:
        return diffusers.DDIMScheduler.from_config(config, clip_sample=False)


def override(scheduler: Any, prediction_type: str | None, rescale_zero_snr: bool | None) -> Any:
    """Return a scheduler with another prediction type and zero terminal SNR setting; None keeps its own.

    A scheduler without the zero terminal SNR option becomes DDIM. Raises BaseModelError if the result is not supported.
    """
    from diffusers import DDIMScheduler

    options = {"prediction_type": prediction_type, ZERO_SNR: rescale_zero_snr}
    changes = {key: value for key, value in options.items() if value is not None}
    if changes:
        require(_class_name(scheduler), scheduler.config)
        changes |= {"timestep_spacing": "trailing"} if rescale_zero_snr else {}
        if rescale_zero_snr is None or ZERO_SNR in type(scheduler)().config:
            scheduler = scheduler.from_config(scheduler.config, **changes)
        else:
            scheduler = DDIMScheduler.from_config(scheduler.config, clip_sample=False, **changes)
    of(scheduler)
    return scheduler


def describe(prediction_type: str, zero_snr: bool | None) -> str:
    """Describe a noise process, for example "v_prediction with zero terminal SNR"."""
    return prediction_type + " with zero terminal SNR" * bool(zero_snr)


def distillation_sign(pipe: Any) -> str:
    """Return why a base model looks distilled for few steps, or "", by its configuration (single files have none)."""
    if pipe.unet.config.time_cond_proj_dim is not None:
        return "its UNet takes the guidance scale as an input, as LCMs do"
    process = of(pipe.scheduler)
    spacing = pipe.scheduler.config.get("timestep_spacing")
    if spacing == "trailing" and process.alphas_cumprod[-1] > 1e-4 and process.prediction_type != "v_prediction":
        return "its scheduler has timestep_spacing 'trailing' without zero terminal SNR, as in Turbo and Lightning"
    return ""
