"""Noise schedulers for generation, set up for the base model's noise process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hra_diffusion.models import families, noise

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": False}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
}
"""Name → (diffusers class, options), for base models with discrete diffusion."""
DEFAULT = "dpm++"
"""The scheduler of ``Settings``; base models with flow matching use their own instead."""


def own_name(pipe: StableDiffusionPipeline) -> str:
    """Return the class name of the pipeline's own scheduler."""
    return type(pipe.scheduler).__name__


def scheduler_names(pipe: StableDiffusionPipeline) -> list[str]:
    """Return the schedulers that a base model can be sampled with, its own last. Flow matching has its own only."""
    return [*(() if families.of(pipe).flow_matching else SCHEDULERS), own_name(pipe)]


def scheduler_name(pipe: StableDiffusionPipeline, name: str | None) -> str:
    """Return the scheduler that a setting means: None is the pipeline's own, as is the default with flow matching."""
    known = scheduler_names(pipe)
    return known[-1] if name is None or (name == DEFAULT and name not in known) else name


@contextlib.contextmanager
def use_scheduler(pipe: StableDiffusionPipeline, name: str) -> Iterator[None]:
    """Replace the pipeline's scheduler within the block; the new one takes only the noise process from the old one.

    The class name of the pipeline's own scheduler leaves that one in place.
    """
    if name not in SCHEDULERS:
        yield
        return
    class_name, options = SCHEDULERS[name]
    before = pipe.scheduler
    pipe.scheduler = noise.of(before).scheduler(class_name, **options)  # a name in SCHEDULERS: discrete diffusion
    # diffusers looks the first timestep up by its value. With Karras sigmas two timesteps near pure noise are equal; it
    # takes the second, and the last step then runs past the end.
    pipe.scheduler.index_for_timestep = lambda timestep, schedule_timesteps=None: 0
    try:
        yield
    finally:
        pipe.scheduler = before
