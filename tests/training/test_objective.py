"""The objective against diffusers and against the definitions in the papers."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from training import objective


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


def test_a_timestep_bias_below_1_samples_noisier_timesteps():
    uniform, noisy = (
        objective.sample_timesteps(20_000, 1000, bias, torch.Generator().manual_seed(0)) for bias in (1.0, 0.65)
    )
    assert uniform.float().mean() == pytest.approx(499.5, abs=8)
    assert noisy.float().mean() == pytest.approx(1000 / 1.65, abs=8)
    assert noisy.min() >= 0
    assert noisy.max() <= 999


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
