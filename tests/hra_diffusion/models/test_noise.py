"""The noise process of a base: which schedulers have one; nothing else of a saved scheduler changes a picture."""

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
"""Options of diffusers' schedulers that are choices of sampling, with values that are not their defaults."""
NEED_MORE = {"DPMSolverSDEScheduler", "LMSDiscreteScheduler"}
"""Those that need torchsde and scipy, which this project does not install."""


def saved_schedulers(**process):
    """Every scheduler of a discrete process that can be built here, plain and with each option of sampling, as loaded:
    all of its options are said, as in the file that ``save_pretrained`` writes."""
    for name in sorted(noise.DISCRETE - NEED_MORE):
        kind = getattr(diffusers, name)
        known = inspect.signature(kind.__init__).parameters
        if not process.keys() <= known.keys():
            continue  # knows no zero terminal SNR
        options = [{}, *({option: v} for option, values in SAMPLING.items() for v in values if option in known)]
        if name.startswith("KDPM2"):
            options = options[:1]  # takes 0.2 s to build; Heun has the same options
        for option in options:
            try:
                made = kind(**BETAS, **process, **option)
            except (NotImplementedError, ValueError):  # not with its other options
                continue
            yield name, option, noise.load_scheduler(name, json.loads(made.to_json_string()))


def sampled(scheduler, steps=3):
    """What a scheduler makes of fixed noise with a fixed function in the UNet's place."""
    scheduler.set_timesteps(steps)
    latents = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    more = {"generator": torch.Generator().manual_seed(1)} if takes_generator else {}
    for timestep in scheduler.timesteps:
        predicted = torch.sin(3 * scheduler.scale_model_input(latents, timestep)) + timestep / 1000
        latents = scheduler.step(predicted, timestep, latents, **more).prev_sample
    return latents


ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


@pytest.mark.filterwarnings("ignore")  # numpy's and diffusers' own
@pytest.mark.parametrize("process", [{"prediction_type": "epsilon"}, ZERO_SNR])
def test_the_same_scheduler_draws_the_same_whatever_the_base_was_saved_with(process, pipe):
    """All of diffusers' schedulers and their options, as saved, by all of ours: ours have equal options, and are really
    sampled with for one saved scheduler of each class."""
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
                    found = sampled(pipe.scheduler)
                    assert found.isfinite().all(), (kind, name)
                    torch.testing.assert_close(found, latents.setdefault(name, found), atol=1e-4, rtol=1e-4)
                tried += 1
    assert tried > (500 if "rescale_betas_zero_snr" in process else 900), "the matrix is there"


@pytest.mark.parametrize("kind", PIPES)
def test_a_base_saved_anew_with_another_scheduler_draws_the_same_picture(kind, tmp_path):
    """Real pictures: saved with DEIS, whose options dpm++ can't have, and with exponential sigmas and an offset."""
    pipe = PIPES[kind]()
    settings = Settings(steps=2, width=16, height=16)
    (wanted,) = generate(pipe, "a dog", {}, seed=3, settings=settings)
    saved = pipe.scheduler.config
    odd = {"use_exponential_sigmas": True, "timestep_spacing": "leading", "steps_offset": 1}
    for number, scheduler in enumerate(
        [DEISMultistepScheduler.from_config(saved), EulerDiscreteScheduler.from_config(saved, **odd)]
    ):
        pipe.scheduler = scheduler
        pipe.save_pretrained(tmp_path / str(number))
        loaded = load_base(str(tmp_path / str(number)), "cpu")
        assert type(loaded.scheduler) is type(scheduler), "exports keep it"
        (picture,) = generate(loaded, "a dog", {}, seed=3, settings=settings)
        assert np.abs(np.asarray(picture, dtype=float) - np.asarray(wanted, dtype=float)).max() <= 1


def test_zero_terminal_snr_survives_a_scheduler_that_does_not_know_it():
    """diffusers keeps the option in the configuration, though PNDM does not act on it."""
    saved = DDIMScheduler(**BETAS, **ZERO_SNR)
    process = noise.of(PNDMScheduler.from_config(saved.config))
    torch.testing.assert_close(process.alphas_cumprod, saved.alphas_cumprod)
    assert process.alphas_cumprod[-1] == 0
    scheduler = process.scheduler("EulerDiscreteScheduler")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps[0] == 999, "trailing: it starts where only noise is left"


def test_rescaled_betas_given_one_by_one_are_zero_terminal_snr():
    betas = DDIMScheduler(**BETAS, **ZERO_SNR).betas.tolist()
    process = noise.of(DDIMScheduler(trained_betas=betas, prediction_type="v_prediction"))
    assert process.zero_snr and sampled(process.scheduler("DPMSolverMultistepScheduler")).isfinite().all()


@pytest.mark.parametrize("process", [ZERO_SNR, {"beta_schedule": "squaredcos_cap_v2"}])  # toybox's betas
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [6, 25])
def test_a_process_that_ends_in_pure_noise_can_be_sampled(process, name, steps, pipe):
    pipe.scheduler = DDIMScheduler(**BETAS | {"prediction_type": "v_prediction"} | process)
    with use_scheduler(pipe, name):
        found = sampled(pipe.scheduler, steps)
        assert pipe.scheduler.timesteps[0] == 999 and found.isfinite().all() and found.abs().max() < 100


@pytest.mark.parametrize("schedule", ["sigmoid", "laplace", "squaredcos_cap_v2"])
def test_betas_that_only_some_schedulers_can_make_are_carried_over(schedule):
    saved = DDPMScheduler(beta_schedule=schedule)
    for kind, _ in SCHEDULERS.values():
        made = noise.of(saved).scheduler(kind)
        torch.testing.assert_close(made.alphas_cumprod, saved.alphas_cumprod)


@pytest.mark.parametrize("name", sorted(NEED_MORE))
def test_a_scheduler_that_needs_a_missing_package_is_read_as_ddim(name):
    if not hasattr(getattr(diffusers, name), "_backends"):
        pytest.skip("its package is installed")
    scheduler = noise.load_scheduler(name, BETAS | {"prediction_type": "v_prediction", "use_karras_sigmas": True})
    assert noise.of(scheduler).prediction_type == "v_prediction" and not scheduler.config.clip_sample
    torch.testing.assert_close(scheduler.betas, DDIMScheduler(**BETAS).betas)


FOREIGN = {
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


@pytest.mark.parametrize("name", FOREIGN)
def test_another_kind_of_process_is_refused_when_loading_drawing_and_training(name, base_folder, tmp_path):
    """Before the weights are loaded; and for a pipeline that was loaded elsewhere."""
    options, reason = FOREIGN[name]
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


def test_flags_override_what_the_base_says(base_folder):
    pipe = load_base(str(base_folder), "cpu", prediction_type="v_prediction", rescale_zero_snr=True)
    process = noise.of(pipe.scheduler)
    assert (process.prediction_type, process.alphas_cumprod[-1]) == ("v_prediction", 0)
    plain = noise.override(pipe.scheduler, "epsilon", False)
    torch.testing.assert_close(noise.of(plain).alphas_cumprod, DDIMScheduler(**BETAS).alphas_cumprod)
    with pytest.raises(BaseModelError, match="unknown prediction type 'velocity'; use one of epsilon"):
        load_base(str(base_folder), "cpu", prediction_type="velocity")


def test_a_scheduler_without_zero_terminal_snr_is_replaced_where_it_is_asked_for(pipe):
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


def test_karras_sigmas_with_zero_terminal_snr_are_warned_of(pipe):
    settings = Settings(steps=1, scheduler="dpm++-karras", width=16, height=16)
    pipe.scheduler = DDIMScheduler(**BETAS, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    with pytest.warns(Note, match="spends most of its steps on pure noise"):
        generate(pipe, "a dog", {}, settings=settings)


def test_euler_a_can_not_draw_what_predicts_the_sample(pipe):
    pipe.scheduler = DDIMScheduler(**BETAS, prediction_type="sample")
    for name in SCHEDULERS:
        settings = Settings(steps=1, scheduler=name, width=16, height=16)
        if name == "euler-a":
            with pytest.raises(UserError, match="euler-a does not support"):
                generate(pipe, "a dog", {}, settings=settings)
        else:
            assert generate(pipe, "a dog", {}, settings=settings)


def test_distilled_bases_are_known_by_their_configuration(pipe):
    assert noise.distillation_sign(pipe) == ""
    pipe.scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing")  # as SD Turbo's and SDXL Turbo's
    assert "'trailing'" in noise.distillation_sign(pipe)
    pipe.scheduler = DDIMScheduler(**BETAS, **ZERO_SNR, timestep_spacing="trailing")
    assert noise.distillation_sign(pipe) == "", "this is what zero terminal SNR needs"
    pipe.register_modules(unet=altered(pipe.unet, time_cond_proj_dim=8))  # as LCMs
    assert "guidance scale" in noise.distillation_sign(pipe)
