"""Runs on base models that are trained by flow matching."""

import pytest
import torch
from conftest import distance
from flow_pipes import FLOW_PIPES, tiny_flux2_pipe, tiny_sd3_pipe
from sessions import make_session

import hra_diffusion as hra
from hra_diffusion.generation.requests import Settings
from hra_diffusion.models import families
from training.batch import make_batch
from training.errors import TrainingError
from training.loop import train
from training.step import batch_loss


@pytest.fixture
def flow_settings(settings):
    own = {"prior_loss_weight": 0, "train_text_encoder": False, "options": {"rank": 2, "orthogonality": 0.0}}
    return lambda **changes: settings(**own | changes)


@pytest.mark.parametrize("kind", FLOW_PIPES)
def test_the_loss_is_that_of_rectified_flow(kind, flow_settings, tmp_path):
    """The mean square of v(z, σ) − (ε − x) at z = (1 − σ) x + σ ε, with x the normalised latents of the photos."""
    pipe = FLOW_PIPES[kind]()
    session = make_session(flow_settings(caption_dropout=0.0), tmp_path, pipe)
    batch = make_batch(session, 3, 0)
    sigmas = batch.timesteps / 1000
    assert sigmas.gt(0).all() and sigmas.le(1).all()
    # z and ε − x determine x and ε
    wide = sigmas[:, None, None, None]
    latents, noise = batch.latents - wide * batch.target, batch.latents + (1 - wide) * batch.target
    photos = session.photos[0]
    means, deviation = photos.mean.flatten(0, 1), photos.std.max()
    nearest = torch.stack([(means - own).abs().amax(dim=(1, 2, 3)).min() for own in latents])
    assert nearest.max() <= 6 * deviation + 1e-4
    assert noise.std() == pytest.approx(1, abs=0.15)
    with torch.no_grad():
        prediction = families.of(pipe).predict(pipe.transformer, batch.latents, batch.timesteps, batch.text, 64)
        expected = (prediction - batch.target).square().mean()
        torch.testing.assert_close(batch_loss(session, batch), expected)


@pytest.mark.parametrize("kind", FLOW_PIPES)
def test_a_run_trains_and_its_adapter_changes_the_pictures(kind, flow_settings, tmp_path):
    pipe = FLOW_PIPES[kind]()
    few = Settings(2)
    (before,) = hra.generate(pipe, "a sks dog", settings=few)
    file = train(flow_settings(base=kind, timestep_sampling="logit-normal"), tmp_path, pipe=pipe)
    (after,) = hra.generate(pipe, "a sks dog", {"Rex": 1.0}, settings=few)
    assert distance(before, after) > 0.01
    other = FLOW_PIPES[kind]()
    hra.load(other, file)
    (again,) = hra.generate(other, "a {subject}", {"Rex": 1.0}, settings=few)
    assert distance(after, again) < 0.01
    assert hra.adapters.adapter_file.read_info(file).prediction_type == "flow"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"min_snr_gamma": 5.0}, "min_snr_gamma does not apply"),
        ({"debiased_estimation": True}, "debiased_estimation does not apply"),
        ({"train_text_encoder": True}, "train_text_encoder: the text encoders of sd3 are not trained"),
    ],
)
def test_settings_without_a_meaning_are_refused(changes, message, flow_settings, tmp_path):
    with pytest.raises(TrainingError, match=message):
        train(flow_settings(base="sd3", **changes), tmp_path, pipe=tiny_sd3_pipe())
    assert not any(tmp_path.iterdir())


def test_distilled_models_are_refused(flow_settings, tmp_path):
    pipe = tiny_sd3_pipe()
    pipe.base_name = "stable-diffusion-3.5-large-turbo"
    with pytest.raises(TrainingError, match="distilled to generate in a few steps: its name says Turbo"):
        train(flow_settings(base="sd3"), tmp_path, pipe=pipe)
    with pytest.raises(TrainingError, match=r"distilled to .* from black-forest-labs/FLUX\.2-klein-base-4B"):
        train(flow_settings(base="flux2"), tmp_path, pipe=tiny_flux2_pipe(is_distilled=True))


def test_the_huber_threshold_follows_the_signal_to_noise_ratio(flow_settings, tmp_path):
    """(1 − c)(1 − σ)² + c, since σ / (1 − σ) is the noise relative to the signal."""
    session = make_session(flow_settings(loss_type="huber", huber_c=0.1), tmp_path, tiny_sd3_pipe())
    batch = make_batch(session, 1, 0)
    torch.testing.assert_close(batch.thresholds, 0.9 * (1 - batch.timesteps / 1000).square() + 0.1)
