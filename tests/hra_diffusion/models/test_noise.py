"""Noise processes: supported schedulers, and independence of images from other options of a saved scheduler."""

import inspect
import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from conftest import PIPES, altered, save_photos, tiny_pipe
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)

from hra_diffusion.errors import BaseModelError, Note, UserError
from hra_diffusion.generation.requests import Settings
from hra_diffusion.generation.sampling import generate
from hra_diffusion.generation.schedulers import SCHEDULERS, use_scheduler
from hra_diffusion.models import noise
from hra_diffusion.models.loading import load_base
from training import config as configs
from training.loop import train

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SAMPLING = {
    "timestep_spacing": ("linspace", "leading", "trailing"), "steps_offset": (0, 1), "set_alpha_to_one": (True, False),
    "use_karras_sigmas": (True,), "use_exponential_sigmas": (True,), "use_lu_lambdas": (True,),
    "final_sigmas_type": ("sigma_min",), "thresholding": (True,), "clip_sample": (True,), "predict_x0": (False,),
    "algorithm_type": ("sde-dpmsolver++", "deis"), "solver_type": ("bh1", "heun", "logrho"), "solver_order": (1, 3),
    "lower_order_final": (False,), "euler_at_final": (True,), "interpolation_type": ("log_linear",),
    "skip_prk_steps": (True,), "variance_type": ("fixed_large",), "lambda_min_clipped": (-5.1,),
    "predictor_order": (1,),
}  # fmt: skip
"""Sampling options of diffusers' schedulers, with values other than their defaults."""
NEED_PACKAGES = {"DPMSolverSDEScheduler", "LMSDiscreteScheduler"}
"""Schedulers that need torchsde or scipy, which are not installed."""


def saved_schedulers(**process):
    """Yield (class, options, scheduler) for each supported class, by default and with each sampling option, as loaded.

    The configurations are complete, as ``save_pretrained`` writes them.
    """
    for name in sorted(noise.DISCRETE_SCHEDULERS - NEED_PACKAGES):
        kind = getattr(diffusers, name)
        known = inspect.signature(kind.__init__).parameters
        if not process.keys() <= known.keys():
            continue  # without zero terminal SNR
        options = [{}, *({option: v} for option, values in SAMPLING.items() for v in values if option in known)]
        if name.startswith("KDPM2"):
            options = options[:1]  # takes 0.2 s to create; Heun has the same options
        for option in options:
            try:
                made = kind(**BETAS, **process, **option)
            except (NotImplementedError, ValueError):  # the option does not fit the others
                continue
            yield name, option, noise.load_scheduler(name, json.loads(made.to_json_string()))


def sample_latents(scheduler, steps=3):
    """Sample from fixed noise with a fixed function in place of the UNet."""
    scheduler.set_timesteps(steps)
    latents = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    more = {"generator": torch.Generator().manual_seed(1)} if takes_generator else {}
    for timestep in scheduler.timesteps:
        predicted = torch.sin(3 * scheduler.scale_model_input(latents, timestep)) + timestep / 1000
        latents = scheduler.step(predicted, timestep, latents, **more).prev_sample
    return latents


ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


@pytest.mark.filterwarnings("ignore")  # of numpy and diffusers
@pytest.mark.parametrize("process", [{"prediction_type": "epsilon"}, ZERO_SNR])
def test_sampling_does_not_depend_on_the_saved_scheduler(process, pipe):
    """For every saved scheduler the sampling scheduler has the same options; latents are compared for each class."""
    configs, latents, tried = {}, {}, 0
    for kind, option, scheduler in saved_schedulers(**process):
        pipe.scheduler = scheduler
        for name in SCHEDULERS:
            with use_scheduler(pipe, name):
                config = dict(pipe.scheduler.config)
                betas = torch.tensor(config.pop("trained_betas"))
                first, first_betas = configs.setdefault(name, (config, betas))
                assert config == first, (kind, option, name)
                torch.testing.assert_close(betas, first_betas, atol=1e-6, rtol=1e-6)
                if not option:
                    found = sample_latents(pipe.scheduler)
                    assert found.isfinite().all(), (kind, name)
                    torch.testing.assert_close(found, latents.setdefault(name, found), atol=1e-4, rtol=1e-4)
                tried += 1
    assert tried > (500 if "rescale_betas_zero_snr" in process else 900), "all combinations are tested"


@pytest.mark.parametrize("kind", PIPES)
def test_images_do_not_depend_on_the_saved_scheduler(kind, tmp_path):
    """Saved with DEIS, whose options dpm++ does not have, and with exponential sigmas and an offset."""
    pipe = PIPES[kind]()
    settings = Settings(steps=2, width=16, height=16)
    (expected,) = generate(pipe, "a dog", {}, seed=3, settings=settings)
    saved = pipe.scheduler.config
    odd = {"use_exponential_sigmas": True, "timestep_spacing": "leading", "steps_offset": 1}
    for number, scheduler in enumerate(
        [DEISMultistepScheduler.from_config(saved), EulerDiscreteScheduler.from_config(saved, **odd)]
    ):
        pipe.scheduler = scheduler
        pipe.save_pretrained(tmp_path / str(number))
        loaded = load_base(str(tmp_path / str(number)), "cpu")
        assert type(loaded.scheduler) is type(scheduler), "exports need it"
        (image,) = generate(loaded, "a dog", {}, seed=3, settings=settings)
        assert np.abs(np.asarray(image, dtype=float) - np.asarray(expected, dtype=float)).max() <= 1


def test_zero_terminal_snr_in_the_config_of_a_scheduler_without_it():
    """diffusers keeps the option in PNDM's configuration but ignores it."""
    saved = DDIMScheduler(**BETAS, **ZERO_SNR)
    process = noise.of(PNDMScheduler.from_config(saved.config))
    torch.testing.assert_close(process.alphas_cumprod, saved.alphas_cumprod)
    assert process.alphas_cumprod[-1] == 0
    scheduler = process.scheduler("EulerDiscreteScheduler")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps[0] == 999, "sampling starts at pure noise"


def test_rescaled_betas_given_one_by_one_are_zero_terminal_snr():
    betas = DDIMScheduler(**BETAS, **ZERO_SNR).betas.tolist()
    process = noise.of(DDIMScheduler(trained_betas=betas, prediction_type="v_prediction"))
    assert process.zero_snr and sample_latents(process.scheduler("DPMSolverMultistepScheduler")).isfinite().all()


@pytest.mark.parametrize("process", [ZERO_SNR, {"beta_schedule": "squaredcos_cap_v2"}])  # toybox's betas
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [6, 25])
def test_sampling_with_zero_terminal_snr(process, name, steps, pipe):
    pipe.scheduler = DDIMScheduler(**BETAS | {"prediction_type": "v_prediction"} | process)
    with use_scheduler(pipe, name):
        found = sample_latents(pipe.scheduler, steps)
        assert pipe.scheduler.timesteps[0] == 999 and found.isfinite().all() and found.abs().max() < 100


@pytest.mark.parametrize("schedule", ["sigmoid", "laplace", "squaredcos_cap_v2"])
def test_betas_of_other_schedules_are_kept(schedule):
    saved = DDPMScheduler(beta_schedule=schedule)
    for kind, _ in SCHEDULERS.values():
        made = noise.of(saved).scheduler(kind)
        torch.testing.assert_close(made.alphas_cumprod, saved.alphas_cumprod)


@pytest.mark.parametrize("name", sorted(NEED_PACKAGES))
def test_a_scheduler_without_its_package_becomes_ddim(name):
    if not hasattr(getattr(diffusers, name), "_backends"):
        pytest.skip("its package is installed")
    scheduler = noise.load_scheduler(name, BETAS | {"prediction_type": "v_prediction", "use_karras_sigmas": True})
    assert noise.of(scheduler).prediction_type == "v_prediction" and not scheduler.config.clip_sample
    torch.testing.assert_close(scheduler.betas, DDIMScheduler(**BETAS).betas)


UNSUPPORTED = {
    "EDMEulerScheduler": ({}, "has no discrete diffusion process"),
    "EDMDPMSolverMultistepScheduler": ({}, "has no discrete diffusion process"),
    "FlowMatchEulerDiscreteScheduler": ({}, "has no discrete diffusion process"),
    "CMStochasticIterativeScheduler": ({}, "has no discrete diffusion process"),
    "IPNDMScheduler": ({}, "has no discrete diffusion process"),
    "LCMScheduler": ({}, "for a distilled model"),
    "TCDScheduler": ({}, "for a distilled model"),
    "UniPCMultistepScheduler": ({"prediction_type": "flow_prediction"}, "flow matching"),
    "DPMSolverMultistepScheduler": ({"use_flow_sigmas": True}, "flow matching"),
    "EulerDiscreteScheduler": ({"timestep_type": "continuous"}, "continuous timesteps"),
    "DDIMScheduler": ({"prediction_type": "velocity"}, "predicts 'velocity'"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_other_processes_are_refused_in_loading_generation_and_training(name, base_folder, tmp_path):
    """Before the weights are loaded, and for a pipeline that diffusers loaded."""
    options, reason = UNSUPPORTED[name]
    scheduler = getattr(diffusers, name)(**options)
    base = shutil.copytree(base_folder, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    scheduler.save_pretrained(base / "scheduler")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", name]}))
    message = f"this base model can't be used: its noise scheduler, {name}, .*{reason}"
    with pytest.raises(BaseModelError, match=message):
        load_base(str(base), "cpu")
    with pytest.raises(BaseModelError, match=message):
        load_base(str(base), "cpu", prediction_type="epsilon", rescale_zero_snr=False)
    pipe = tiny_pipe()
    pipe.scheduler = scheduler
    with pytest.raises(BaseModelError, match=message):
        generate(pipe, "a dog", {})
    given = {"name": "Rex", "photos": [str(save_photos(tmp_path, 1))], "class_noun": "dog", "resolution": 64}
    with pytest.raises(BaseModelError, match=message):
        train(configs.parse(given | {"device": "cpu"}), tmp_path / "out", pipe=pipe)
    assert not (tmp_path / "out").exists()


def test_overriding_the_noise_process(base_folder):
    pipe = load_base(str(base_folder), "cpu", prediction_type="v_prediction", rescale_zero_snr=True)
    process = noise.of(pipe.scheduler)
    assert (process.prediction_type, process.alphas_cumprod[-1]) == ("v_prediction", 0)
    plain = noise.override(pipe.scheduler, "epsilon", False)
    torch.testing.assert_close(noise.of(plain).alphas_cumprod, DDIMScheduler(**BETAS).alphas_cumprod)
    with pytest.raises(BaseModelError, match="unknown prediction type 'velocity'; use one of epsilon"):
        load_base(str(base_folder), "cpu", prediction_type="velocity")


def test_zero_terminal_snr_replaces_a_scheduler_without_it(pipe):
    before = PNDMScheduler.from_config(pipe.scheduler.config)
    after = noise.override(before, "v_prediction", True)
    assert after.alphas_cumprod[-1] == 0 and not after.config.clip_sample
    assert after.config.timestep_spacing == "trailing"


def test_noise_prediction_with_zero_terminal_snr_is_refused(base_folder, pipe):
    with pytest.raises(BaseModelError, match=r"--prediction-type v_prediction.*else --no-rescale-zero-snr"):
        load_base(str(base_folder), "cpu", rescale_zero_snr=True)
    pipe.scheduler = DDIMScheduler(**BETAS, rescale_betas_zero_snr=True)
    with pytest.raises(BaseModelError, match="zero terminal SNR"):
        generate(pipe, "a dog", {})


def test_karras_sigmas_with_zero_terminal_snr_give_a_warning(pipe):
    settings = Settings(steps=1, scheduler="dpm++-karras", width=16, height=16)
    pipe.scheduler = DDIMScheduler(**BETAS, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    with pytest.warns(Note, match="spends most of its steps on pure noise"):
        generate(pipe, "a dog", {}, settings=settings)


def test_euler_a_does_not_support_sample_prediction(pipe):
    pipe.scheduler = DDIMScheduler(**BETAS, prediction_type="sample")
    for name in SCHEDULERS:
        settings = Settings(steps=1, scheduler=name, width=16, height=16)
        if name == "euler-a":
            with pytest.raises(UserError, match="euler-a does not support"):
                generate(pipe, "a dog", {}, settings=settings)
        else:
            assert generate(pipe, "a dog", {}, settings=settings)


def test_distilled_base_models_are_detected_by_their_configuration(pipe):
    assert noise.distillation_sign(pipe) == ""
    pipe.scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing")  # as in SD Turbo and SDXL Turbo
    assert "'trailing'" in noise.distillation_sign(pipe)
    pipe.scheduler = DDIMScheduler(**BETAS, **ZERO_SNR, timestep_spacing="trailing")
    assert noise.distillation_sign(pipe) == "", "zero terminal SNR requires trailing"
    pipe.register_modules(unet=altered(pipe.unet, time_cond_proj_dim=8))  # as in LCMs
    assert "guidance scale" in noise.distillation_sign(pipe)
