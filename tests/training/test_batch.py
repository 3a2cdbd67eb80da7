"""The batches of a run: what the objective's settings change in them."""

import pytest
import torch
from sessions import make_session

from training import objective
from training.batch import make_batch
from training.step import TrainingStep


@pytest.fixture
def batch_of(settings, tmp_path):
    """A function that returns a batch of a session with changed settings, and the session."""

    def make(position=3, **changes):
        session = make_session(settings(prior_loss_weight=0, train_text_encoder=False, **changes), tmp_path)
        return make_batch(session, position, 0), session

    return make


def test_timesteps_weights_and_thresholds_follow_the_settings(batch_of):
    def batch(**changes):
        return batch_of(batch_size=8, **changes)[0]

    limited, noisy = (
        batch(**changes).timesteps
        for changes in (
            {"min_timestep": 600, "max_timestep": 700},
            {"timestep_sampling": "logit-normal", "logit_mean": 5, "logit_std": 0.1},
        )
    )
    assert limited.min() >= 600 and limited.max() < 700 and noisy.min() > 980
    assert batch().weights.eq(1).all() and batch(min_snr_gamma=1e-3).weights.lt(1).all()
    assert batch(huber_c=0.5, huber_schedule="constant").thresholds.eq(0.5).all()
    coarse, fine = (batch(multires_noise_iterations=4, multires_noise_discount=rate).target for rate in (0.9, 0.1))
    assert coarse.mean(dim=(2, 3)).std() > 2 * fine.mean(dim=(2, 3)).std()


@pytest.mark.parametrize("changes", [{"noise_offset": 0.1}, {"multires_noise_iterations": 4}], ids=str)
def test_low_frequency_noise_is_predicted_too(batch_of, changes):
    plain, session = batch_of()
    shaped, _ = batch_of(**changes)
    assert torch.equal(shaped.timesteps, plain.timesteps)
    alphas = session.noise_process.alphas_cumprod
    latents = plain.latents - objective.add_noise(torch.zeros_like(plain.target), plain.target, plain.timesteps, alphas)
    noisy = latents + objective.add_noise(torch.zeros_like(latents), shaped.target, shaped.timesteps, alphas)
    torch.testing.assert_close(shaped.latents, noisy, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(shaped.target, plain.target, atol=1e-2)


def test_input_perturbation_is_not_predicted(batch_of):
    """arXiv 2301.11706, algorithm 1: the input has the noise ε + γξ, the target is ε."""
    plain, session = batch_of()
    perturbed, _ = batch_of(input_perturbation=0.1)
    assert torch.equal(perturbed.target, plain.target)
    sigma = (1 - session.noise_process.alphas_cumprod[plain.timesteps]).sqrt()[:, None, None, None]
    assert ((perturbed.latents - plain.latents) / sigma).std() == pytest.approx(0.1, rel=0.1)


def test_debiased_estimation_and_huber_loss_reach_the_loss(settings, tmp_path):
    losses = []
    for changes in ({}, {"debiased_estimation": True}, {"loss_type": "huber"}, {"loss_type": "smooth-l1"}):
        session = make_session(settings(prior_loss_weight=0, train_text_encoder=False, **changes), tmp_path)
        losses.append(float(TrainingStep(session)(1e-3)[0]))
    assert len(set(losses)) == 4 and losses[2] < losses[0], "a Huber loss is below the squared error"
