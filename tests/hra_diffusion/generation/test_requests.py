"""Settings: validation against the base model."""

import pytest
import torch
from conftest import distance, tiny_pipe
from diffusers import EulerAncestralDiscreteScheduler, LCMScheduler, PNDMScheduler
from flow_pipes import tiny_sd3_pipe

from hra_diffusion.errors import UserError
from hra_diffusion.generation.png import read_png, save_png
from hra_diffusion.generation.requests import Settings, complete_settings
from hra_diffusion.generation.sampling import generate


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(scheduler="magic"), "unknown scheduler 'magic'; use one of dpm"),
        (Settings(width=17), "multiples of 4"),
        (Settings(height=100_000), "up to 4096"),
        (Settings(steps=0), "steps must be from 1 to 1000"),
    ],
)
def test_invalid_settings(pipe, settings, message):
    with pytest.raises(UserError, match=message):
        complete_settings(pipe, settings)


def test_sides_end_with_the_positions_of_the_base():
    """The tiny one has 32 of 4 pixels; Stable Diffusion 3.5 large has 192 of 16."""
    assert complete_settings(tiny_sd3_pipe(), Settings(width=128)).width == 128
    with pytest.raises(UserError, match="multiples of 4 up to 128 for this base, not 132"):
        complete_settings(tiny_sd3_pipe(), Settings(width=132))


def test_without_a_scheduler_the_pipelines_own_samples(tmp_path):
    """With its own options: here steps from 999 down, with an offset, and a fixed sequence of random numbers."""
    pipe = tiny_pipe()
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    image = generate(pipe, "a dog", {}, seed=3, settings=Settings(steps=4, scheduler=None, guidance_scale=7.5))[0]
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn((1, 4, 8, 8), generator=generator)
    expected = pipe("a dog", latents=latents, generator=generator, num_inference_steps=4).images[0]
    assert distance(image, expected) == 0
    assert distance(image, generate(pipe, "a dog", {}, seed=3, settings=Settings(steps=4, scheduler="euler-a"))[0]) > 1
    saved = read_png(save_png(image, tmp_path / "own.png"))
    assert saved["scheduler"] == "EulerAncestralDiscreteScheduler"
    again = generate(pipe, "a dog", {}, seed=3, settings=Settings(4, 7.5, saved["scheduler"]))[0]
    assert distance(again, image) == 0
    with pytest.raises(UserError, match="unknown scheduler 'EulerAncestralDiscreteScheduler'"):
        generate(tiny_pipe(), "a dog", {}, settings=Settings(4, 7.5, saved["scheduler"]))


@pytest.mark.parametrize(("kind", "calls"), [(PNDMScheduler, 5), (LCMScheduler, 4)])
def test_schedulers_that_only_the_pipeline_can_have(kind, calls):
    """PNDM calls the UNet once more than it has steps; LCM has no discrete noise process."""
    pipe, steps = tiny_pipe(), []
    pipe.scheduler = kind.from_config(pipe.scheduler.config, skip_prk_steps=True)
    generate(pipe, "a dog", {}, settings=Settings(steps=4, scheduler=None), on_step=steps.append)
    assert [(step.step, step.steps) for step in steps] == [(number, calls) for number in range(1, calls + 1)]
