"""The noise process a base was trained with: its betas, what its UNet predicts, and whether it ends in pure noise.

These belong to the weights. All other options of a saved scheduler (solver, sigmas, timestep spacing, steps_offset,
thresholding, clip_sample, …) are choices of sampling and are not taken over, so that the same weights give the same
picture whatever scheduler they were saved with. Timesteps are always spaced "trailing": the first is the last of
training, as zero terminal SNR requires (Lin et al., arXiv 2305.08891), and no ``steps_offset`` applies. Latents have no
fixed range, so they are never clipped.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hra_diffusion.errors import BaseModelError

if TYPE_CHECKING:
    from torch import Tensor

RESCALE = "rescale_betas_zero_snr"
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
DISCRETE = {
    "DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler",
    "SASolverScheduler", "UniPCMultistepScheduler",
}  # fmt: skip
"""diffusers' samplers of a discrete diffusion process. The others have noise levels or timesteps of their own."""
DISTILLED = ("LCMScheduler", "TCDScheduler")


@dataclass(frozen=True, eq=False)
class NoiseProcess:
    """A discrete diffusion process. ``betas`` (T,): noise variances by timestep; ``zero_snr``: rescaled to zero
    terminal SNR."""

    betas: Tensor
    prediction_type: str
    zero_snr: bool

    @functools.cached_property
    def alphas_cumprod(self) -> Tensor:
        """The signal's share of the variance by timestep (T,); exactly 0 at the last one for zero terminal SNR."""
        return self.scheduler("DDIMScheduler").alphas_cumprod

    def scheduler(self, kind: str, **options: Any) -> Any:
        """A scheduler of this process, by its class in diffusers, with its own defaults but for ``options``."""
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
    """The noise process of a diffusers scheduler. Raises BaseModelError if it has none that is discrete and usable."""
    require_discrete(_name(scheduler), scheduler.config)
    facts = process_settings(scheduler)
    if facts == {"prediction_type": "epsilon", "zero_snr": True}:
        raise BaseModelError(
            "the base's noise scheduler has zero terminal SNR and predicts noise, which says nothing about a picture "
            "where there is only noise: add --prediction-type v_prediction if the base predicts velocity, else "
            "--no-rescale-zero-snr"
        )
    return NoiseProcess(scheduler.betas.cpu(), **facts)


def process_settings(scheduler: Any) -> dict[str, Any]:
    """What a scheduler says of its noise process, as adapter files record it: of any scheduler, also one that ``of``
    refuses."""
    config, betas = scheduler.config, getattr(scheduler, "betas", None)
    rescaled = betas is not None and bool(betas[-1] >= 1)  # they may be given one by one
    return {"prediction_type": config.get("prediction_type", ""), "zero_snr": rescaled or bool(config.get(RESCALE))}


def _name(scheduler: Any) -> str:
    """Its class; for a subclass of one of diffusers' own, that one."""
    kinds = [kind.__name__ for kind in type(scheduler).__mro__]
    return next((kind for kind in kinds if kind in DISCRETE), kinds[0])


def require_discrete(name: str, config: Mapping[str, Any]) -> None:
    """Raises BaseModelError for a scheduler, by class name and configuration, of another kind of process."""
    if name in DISTILLED:
        reason = "draws in a few timesteps of its own, for a distilled model: use the base it was distilled from"
    elif name not in DISCRETE:
        reason = "is not one of a discrete diffusion process with betas, as Stable Diffusion's are"
    elif config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        reason = "is set up for flow matching"
    elif config.get("timestep_type", "discrete") != "discrete":
        reason = "has continuous timesteps (EDM)"
    elif config.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
        reason = f"predicts {config['prediction_type']!r}, which is none of {', '.join(PREDICTION_TYPES)}"
    else:
        return
    raise BaseModelError(f"this base can be neither trained nor drawn with: its noise scheduler, {name}, {reason}")


def load_scheduler(name: str, config: dict[str, Any]) -> Any:
    """The scheduler of a saved base, by class name and configuration; DDIM of the same noise process in place of one
    that needs a package that is missing (scipy, torchsde). Raises BaseModelError (see ``require_discrete``)."""
    import diffusers

    require_discrete(name, config)
    try:
        return getattr(diffusers, name).from_config(config)
    except ImportError:
        return diffusers.DDIMScheduler.from_config(config, clip_sample=False)


def override(scheduler: Any, prediction_type: str | None, rescale_zero_snr: bool | None) -> Any:
    """The scheduler with another prediction type, or with or without zero terminal SNR, where these are given; as DDIM
    if its class has no zero terminal SNR.

    Raises BaseModelError if the result is not usable (see ``of``).
    """
    from diffusers import DDIMScheduler

    given = {"prediction_type": prediction_type, RESCALE: rescale_zero_snr}
    changes = {key: value for key, value in given.items() if value is not None}
    if changes:
        require_discrete(_name(scheduler), scheduler.config)
        changes |= {"timestep_spacing": "trailing"} if rescale_zero_snr else {}
        if rescale_zero_snr is None or RESCALE in type(scheduler)().config:
            scheduler = scheduler.from_config(scheduler.config, **changes)
        else:
            scheduler = DDIMScheduler.from_config(scheduler.config, clip_sample=False, **changes)
    of(scheduler)
    return scheduler


def describe(prediction_type: str, zero_snr: bool | None) -> str:
    """A noise process for reading: "v_prediction with zero terminal SNR"."""
    return prediction_type + " with zero terminal SNR" * bool(zero_snr)


def distillation_sign(pipe: Any) -> str:
    """Why a base looks distilled for few steps, or "". Only its configuration is read: a single file has none."""
    if pipe.unet.config.time_cond_proj_dim is not None:
        return "its UNet takes the guidance scale as an input, as LCMs do"
    process = of(pipe.scheduler)
    spacing = pipe.scheduler.config.get("timestep_spacing")
    if spacing == "trailing" and process.alphas_cumprod[-1] > 1e-4 and process.prediction_type != "v_prediction":
        return "its scheduler has timestep_spacing 'trailing' without zero terminal SNR, as Turbo and Lightning have"
    return ""
