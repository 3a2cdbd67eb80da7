"""Validation: the denoising loss of a photo that is not trained on, and when to stop early.

The loss is a mean over the same timesteps and the same noise at every step, so that it changes with the adapter alone.
ostris/ai-toolkit (27a03a9) computes its validation loss at four fixed noise levels, too.
"""

from typing import cast

import torch

from training import objective
from training.data.latent_cache import LatentCache
from training.noising import noised
from training.runs.checkpoint import averaged
from training.runs.events import Validated
from training.session.state import Session

TIMESTEPS, DRAWS = 8, 2
"""Timesteps of the loss, evenly spaced, and samples of noise at each."""


def validation_due(session: Session) -> bool:
    """Return whether to compute the validation loss after this step."""
    config = session.config
    every = config.validation_every or config.checkpoint_every
    return session.validation is not None and (session.step % every == 0 or session.step == config.steps)


def validate(session: Session) -> None:
    """Compute the validation loss, the same in every process, record it and emit the event."""
    with session.timer.phase("validation"), averaged(session):
        loss = validation_loss(session)
    loss = float(session.processes.average(session.step, torch.tensor(loss)))
    session.validation_losses[session.step] = loss
    session.timer.emit(Validated(session.step, round(loss, 6)))


@torch.no_grad()
def validation_loss(session: Session) -> float:
    """Return the mean squared error on the held-out photo over fixed timesteps and noise.

    The mask of the photo weighs the latent positions as in training; timesteps have equal weights.
    """
    photo = cast(LatentCache, session.validation)
    process, size = session.noise_process, session.config.batch_size
    count = TIMESTEPS * DRAWS
    latents, text, mask = photo.batch(count, 0, 0, "validation")
    noise = torch.randn(latents.shape, generator=objective.seeded_generator(0, "validation noise"))
    timesteps = ((torch.arange(count) % TIMESTEPS + 0.5) * process.timesteps / TIMESTEPS).long()
    noisy, times, target = noised(process, latents, noise, timesteps, noise)
    device = session.accelerator.device
    errors = []
    session.denoiser.eval()
    try:
        for start in range(0, count, size):
            part = slice(start, start + size)
            own_text = {key: value[part].to(device) for key, value in text.items()}
            prediction = session.denoiser(noisy[part].to(device), times[part].to(device), own_text)
            squares = (prediction.float().cpu() - target[part]).square()
            errors.append((squares if mask is None else squares * mask[part]).mean(dim=(1, 2, 3)))
    finally:
        session.denoiser.train()
    return float(torch.cat(errors).mean())


def is_exhausted(session: Session) -> bool:
    """Return whether training stops early: the last ``early_stop`` validation losses are no new minimum."""
    patience, losses = session.config.early_stop, list(session.validation_losses.values())
    return 0 < patience <= len(losses) - 1 - losses.index(min(losses)) if losses else False
