"""One optimiser step."""

import math
from typing import cast

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from hra_diffusion.adapters import attachment
from training import objective
from training.errors import TrainingError
from training.session.state import Session

MAX_SKIPPED = 20
"""Consecutive steps that the loss scaler may skip before the run fails."""


def train_step(session: Session, learning_rate: float) -> float:
    """Take one optimiser step and return its loss. Raises TrainingError if the loss or a gradient is not finite."""
    config, accelerator = session.config, session.accelerator
    for group in session.optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]
    total = 0.0
    for micro in range(config.gradient_accumulation_steps):
        with accelerator.accumulate(session.denoiser):
            loss = batch_loss(session, session.step * config.gradient_accumulation_steps + micro)
            total += require_finite(session, "loss", loss.item()) / config.gradient_accumulation_steps
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(session.parameters.values(), config.max_grad_norm)
                if config.mixed_precision != "fp16":  # where the loss scaler skips such steps
                    require_finite(session, "gradient", float(cast(Tensor, norm)))
            session.optimizer.step()
            # a fused optimiser leaves the version unchanged, and cached factors depend on it
            increment_version(list(session.parameters.values()))
            session.optimizer.zero_grad()
    session.step += 1
    if not step_skipped(session):
        update_averages(session)
    return total


def batch_loss(session: Session, position: int) -> Tensor:
    """Return the training loss of this process's batch number ``position``, regularisers of the method included."""
    config, accelerator = session.config, session.accelerator
    position = position * accelerator.num_processes + accelerator.process_index
    batches = [session.photos.batch(config.batch_size, position, config.seed, "photos")]
    if session.class_images is not None:
        batches.append(session.class_images.batch(config.batch_size, position, config.seed, "class"))
    latents = torch.cat([latents for latents, _ in batches])
    text = {key: torch.cat([text[key] for _, text in batches]) for key in batches[0][1]}
    alphas, kind = session.noise_process.alphas_cumprod, session.noise_process.prediction_type
    generator = objective.seeded_generator(config.seed, "noise", position)
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = objective.sample_timesteps(len(latents), len(alphas), config.timestep_bias, generator)
    target = objective.prediction_target(latents, noise, timesteps, alphas, kind)
    weights = objective.min_snr_weights(timesteps, alphas, config.min_snr_gamma, kind, config.min_snr_formula)
    latents = objective.add_noise(latents, noise, timesteps, alphas)
    device = accelerator.device
    text = {key: value.to(device) for key, value in text.items()}
    prediction = session.denoiser(latents.to(device), timesteps.to(device), text)
    classes = config.batch_size if session.class_images is not None else 0
    loss = objective.denoising_loss(
        prediction, target.to(device), weights.to(device), classes, config.prior_loss_weight
    )
    penalties = [attachment.penalty(model, config.name) for model in session.trained_components.values()]
    return loss + sum(penalty.to(device) for penalty in penalties if penalty is not None)


def step_skipped(session: Session) -> bool:
    """Return whether the float16 loss scaler skipped the last step. Raises TrainingError after MAX_SKIPPED in a row."""
    session.skipped_steps = session.skipped_steps + 1 if session.accelerator.optimizer_step_was_skipped else 0
    if session.skipped_steps >= MAX_SKIPPED:
        require_finite(session, "gradient", math.nan)
    return session.skipped_steps > 0


def require_finite(session: Session, what: str, value: float) -> float:
    """Return ``value``, or raise TrainingError if it is not finite."""
    if math.isfinite(value):
        return value
    saved = session.run.checkpoints()
    checkpoint = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint has been saved yet"
    raise TrainingError(
        f"the {what} became {value} at step {session.step + 1}; {checkpoint}; "
        f"try a lower --learning-rate than {session.config.learning_rate:g}, or --dtype float32, under another --name"
    )


def update_averages(session: Session) -> None:
    """Update the moving averages, with a smaller decay in the first steps."""
    decay = min(session.config.ema_decay, (1 + session.step) / (10 + session.step))
    for key, average in session.moving_averages.items():
        average.lerp_(session.parameters[key].detach(), 1 - decay)
