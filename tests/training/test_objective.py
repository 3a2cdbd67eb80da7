"""The objective against diffusers and against the definitions in the papers."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr

from hra_diffusion.models import flow
from training import objective
from training.settings.objective import ObjectiveSettings


def settings(**values):
    required = {"min_snr_formula": "standard", "prior_loss_weight": 1.0, "num_class_images": 1}
    return ObjectiveSettings.model_validate(required | values)


def timesteps_of(**values):
    return objective.sample_timesteps(20_000, 1000, settings(**values), torch.Generator().manual_seed(0))


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(6, 4, 8, 8, generator=g), torch.randn(6, 4, 8, 8, generator=g)
    return latents, noise, torch.tensor([0, 10, 250, 500, 900, 999]), DDPMScheduler(beta_schedule="scaled_linear")


def test_noise_and_velocity_match_diffusers(batch):
    latents, noise, timesteps, scheduler = batch
    alphas = scheduler.alphas_cumprod
    torch.testing.assert_close(
        objective.add_noise(latents, noise, timesteps, alphas), scheduler.add_noise(latents, noise, timesteps)
    )
    torch.testing.assert_close(
        objective.prediction_target(latents, noise, timesteps, alphas, "v_prediction"),
        scheduler.get_velocity(latents, noise, timesteps),
    )
    assert objective.prediction_target(latents, noise, timesteps, alphas, "epsilon") is noise
    with pytest.raises(ValueError, match="known: epsilon"):
        objective.prediction_target(latents, noise, timesteps, alphas, "flow")


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_matches_diffusers(batch, shift):
    """Noise levels, noisy latents and timesteps; the target leads along a straight line to any other noise level."""
    latents, noise, timesteps, _ = batch
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    sigmas = objective.flow_sigmas(timesteps, 1000, shift)
    torch.testing.assert_close(objective.flow_sigmas(torch.arange(1000), 1000, shift).flip(0), scheduler.sigmas)
    theirs = scheduler.timesteps[999 - timesteps]
    torch.testing.assert_close(1000 * sigmas, theirs)
    noisy = objective.flow_latents(latents, noise, sigmas)
    torch.testing.assert_close(noisy, scheduler.scale_noise(latents, theirs, noise))
    scheduler.set_timesteps(4)
    start = objective.flow_latents(latents, noise, scheduler.sigmas[:1].expand(6))
    stepped = scheduler.step(objective.flow_target(latents, noise), scheduler.timesteps[0], start).prev_sample
    torch.testing.assert_close(stepped, objective.flow_latents(latents, noise, scheduler.sigmas[1:2].expand(6)))


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_the_flow_shift_of_a_size_matches_diffusers(tokens):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    process = flow.of(scheduler, 1)
    scheduler.set_timesteps(sigmas=(torch.arange(1000, 0, -1) / 1000).tolist(), mu=calculate_shift(tokens))
    sigmas = objective.flow_sigmas(torch.arange(1000), 1000, process.shift_for(16, tokens // 16))
    torch.testing.assert_close(sigmas.flip(0), scheduler.sigmas[:-1])


def test_a_timestep_bias_below_1_samples_noisier_timesteps():
    uniform, noisy = (timesteps_of(timestep_bias=bias) for bias in (1.0, 0.65))
    assert torch.equal(timesteps_of(timestep_sampling="uniform", timestep_bias=0.65), uniform)
    assert uniform.float().mean() == pytest.approx(499.5, abs=8)
    assert noisy.float().mean() == pytest.approx(1000 / 1.65, abs=8)
    assert noisy.min() >= 0
    assert noisy.max() <= 999


@pytest.mark.parametrize(
    ("sampling", "theirs"),
    [
        ({"timestep_sampling": "logit-normal", "logit_mean": -0.5, "logit_std": 0.8}, ("logit_normal", -0.5, 0.8)),
        ({"timestep_sampling": "mode", "mode_scale": 0.6}, ("mode", None, None, 0.6)),
    ],
)
def test_timestep_distributions_match_diffusers(sampling, theirs):
    """Deciles against diffusers' samples. Its u counts from the noisy end for "mode", which is symmetric."""
    kind, mean, std, *scale = theirs
    torch.manual_seed(0)
    expected = compute_density_for_timestep_sampling(kind, 100_000, mean, std, *scale)
    deciles = torch.linspace(0.1, 0.9, 9)
    found = objective.timestep_quantiles(deciles, settings(**sampling)).sort().values
    torch.testing.assert_close(found, expected.quantile(deciles), atol=0.01, rtol=0)


def test_the_cosine_map_has_the_density_of_the_paper():
    """arXiv 2403.03206, equation 21: 2 / (π − 2πt + 2πt²)."""
    u = torch.linspace(0.05, 0.95, 19, dtype=torch.float64, requires_grad=True)
    t = objective.timestep_quantiles(u, settings(timestep_sampling="cosine-map"))
    (slope,) = torch.autograd.grad(t.sum(), u)
    torch.testing.assert_close(1 / slope, 2 / (torch.pi - 2 * torch.pi * t + 2 * torch.pi * t.square()))


@pytest.mark.parametrize("kind", ["power", "uniform", "logit-normal", "mode", "cosine-map"])
def test_timesteps_stay_in_their_range(kind):
    found = timesteps_of(timestep_sampling=kind, min_timestep=200, max_timestep=600)
    assert 200 <= found.min() < 210 and 590 < found.max() <= 599
    ends = objective.timestep_quantiles(torch.tensor([0.0, 1 - 2**-24]), settings(timestep_sampling=kind))
    assert ends.isfinite().all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_timestep": 600, "max_timestep": 600}, "must be below max_timestep"),
        ({"min_snr_gamma": 5, "debiased_estimation": True}, "use one of them"),
        ({"noise_offset": 0.1, "multires_noise_iterations": 6}, "use one of them"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        settings(**values)


def test_debiased_estimation_matches_sd_scripts():
    """``apply_debiased_estimation`` at SNRs of 4000 (counts as 1000), 9, 1 and 1/4."""
    alphas = torch.tensor([snr / (snr + 1) for snr in (4000, 9, 1, 0.25)], dtype=torch.float64)
    for kind, weights in {
        "epsilon": [1000**-0.5, 1 / 3, 1, 2],
        "v_prediction": [1 / 1001, 1 / 10, 1 / 2, 1 / 1.25],
        "sample": [1000**0.5, 3, 1, 0.5],
    }.items():
        found = objective.debiased_weights(torch.arange(4), alphas, kind)
        torch.testing.assert_close(found, torch.tensor(weights, dtype=torch.float32), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("schedule", "thresholds"),
    [("constant", [0.1, 0.1]), ("exponential", [1.0, 0.1**0.5]), ("snr", [0.9 / 1.5**2 + 0.1, 0.9 / 3**2 + 0.1])],
)
def test_huber_thresholds_match_sd_scripts(schedule, thresholds):
    """``get_huber_threshold_if_needed`` at timesteps 0 and 1 of 2, with noise levels σ = √(1/ᾱ − 1) of 1/2 and 2."""
    found = objective.huber_thresholds(torch.arange(2), torch.tensor([0.8, 0.2]), 0.1, schedule)
    torch.testing.assert_close(found, torch.tensor(thresholds))


def test_robust_losses_match_sd_scripts():
    """``conditional_loss``: 2c(√(d² + c²) − c) and 2(√(d² + c²) − c), with a threshold c per sample."""
    difference, c = torch.tensor([0.01, 3.0]).view(2, 1, 1, 1), torch.tensor([0.5, 4.0])
    errors = {
        kind: objective.elementwise_errors(difference, torch.zeros(2, 1, 1, 1), kind, c).flatten()
        for kind in ("l2", "huber", "smooth-l1")
    }
    torch.testing.assert_close(errors["l2"], torch.tensor([1e-4, 9.0]))
    torch.testing.assert_close(errors["smooth-l1"], torch.tensor([2 * (0.2501**0.5 - 0.5), 2.0]))
    torch.testing.assert_close(errors["huber"], c * errors["smooth-l1"])


def test_offset_noise_is_constant_per_channel():
    noise = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    added = objective.offset_noise(noise, 0.1, torch.Generator().manual_seed(1)) - noise
    assert added.std(dim=(2, 3)).max() < 1e-6
    assert added[..., 0, 0].std() == pytest.approx(0.1, rel=0.15)


def test_multires_noise_has_unit_variance_and_more_low_frequencies():
    noise = torch.randn(64, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    found = objective.multires_noise(noise, 6, 0.8, torch.Generator().manual_seed(1))
    assert found.std() == pytest.approx(1, abs=1e-3)
    assert found.mean(dim=(2, 3)).std() > 3 * noise.mean(dim=(2, 3)).std()


@pytest.mark.parametrize(
    ("kind", "formula", "weights"),
    [
        ("sample", "standard", [5, 4, 1, 0.25, 0]),
        ("epsilon", "standard", [5 / 9, 1, 1, 1, 1]),
        ("v_prediction", "standard", [5 / 10, 4 / 5, 1 / 2, 0.25 / 1.25, 0]),
        ("v_prediction", "plus-one", [6 / 10, 1, 1, 1, 1]),
    ],
)
def test_min_snr_weights_match_the_paper(kind, formula, weights):
    """arXiv 2303.09556, section 3.4, with γ = 5 at SNRs of 9, 4, 1, 1/4 and 0: min(SNR, γ) for x₀, min(SNR, γ)/SNR for
    ε (in the limit 1 at 0), min(SNR, γ)/(SNR + 1) for v. "plus-one" is not from the paper."""
    alphas = torch.tensor([snr / (snr + 1) for snr in (9, 4, 1, 0.25, 0)])
    found = objective.min_snr_weights(torch.arange(5), alphas, 5.0, kind, formula)
    torch.testing.assert_close(found, torch.tensor(weights, dtype=torch.float32))
    assert objective.min_snr_weights(torch.arange(5), alphas, 0, kind, formula).eq(1).all()


def test_the_snr_matches_diffusers(batch):
    _, _, timesteps, scheduler = batch
    found = objective.min_snr_weights(timesteps, scheduler.alphas_cumprod, 1e9, "sample")
    torch.testing.assert_close(found, compute_snr(scheduler, timesteps))


def test_the_prior_loss_has_its_own_weight():
    prediction, target = torch.zeros(4, 1, 2, 2), torch.zeros(4, 1, 2, 2)
    target[:2], target[2:] = 1.0, 2.0
    assert objective.denoising_loss(prediction, target, torch.ones(4), 2, 0.5) == 1 + 0.5 * 4
    assert objective.denoising_loss(prediction, target, torch.ones(4), 0, 0.5) == 2.5


def test_every_photo_is_used_once_per_epoch():
    for epoch in range(3):
        seen = [i for batch in range(5) for i in objective.batch_indices(10, 2, epoch * 5 + batch, seed=1)]
        assert sorted(seen) == list(range(10))
    assert len(objective.batch_indices(3, 8, 4, 0)) == 8, "a batch may be larger than the dataset"


def test_generators_depend_only_on_seed_and_labels():
    def draw(*labels):
        return torch.randn(3, generator=objective.seeded_generator(*labels)).tolist()

    assert draw(1, "noise", 5) == draw(1, "noise", 5)
    assert (
        len({tuple(draw(*labels)) for labels in ((1, "noise", 5), (1, "noise", 6), (2, "noise", 5), (1, "class", 5))})
        == 4
    )


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.5, 1, 1, 1, 1]), ("linear", [0.5, 1, 1, 0.5, 0.25]), ("cosine", [0.5, 1, 1, 0.5, 0.1464])],
)
def test_learning_rate_schedules(schedule, expected):
    factors = [objective.learning_rate_factor(step, 6, 2, schedule) for step in (0, 1, 2, 4, 5)]
    assert factors == pytest.approx(expected, abs=1e-3)
