"""One optimiser step: copy prepared batches to the device, then compute without waiting for the device."""

from typing import Any

import torch
from torch import Tensor

from hra_diffusion.adapters import activation, attachment
from training import objective
from training.batch import Batch, make_batches
from training.errors import TrainingError
from training.preservation import preservation_target
from training.session.model import has_dropout
from training.session.optimizer import set_learning_rate
from training.session.state import Session
from training.session.trigger_embeddings import unchanged_norms

MAX_SKIPPED = 20
"""Consecutive steps that the loss scaler may skip before the run fails."""


class TrainingStep:
    """The optimiser step of a session.

    ``compute`` is a function of tensors that stay in place: ``inputs``, the parameters, the optimiser's state and its
    learning rates. It can therefore be captured as a graph (see ``training.step_graph``), one per bucket, whose tensors
    have a shape and a place of their own; ``session.graphs`` then replace it.

    Attributes:
        inputs: the batches of the step that was loaded last, one per accumulated gradient, on the device.
        results: the loss of each batch, then the norm of the gradients before clipping (0 with a loss scaler).
    """

    def __init__(self, session: Session):
        self.session, device = session, session.accelerator.device
        self._prepared = session.step, make_batches(session, session.step)
        self._places: dict[torch.Size, list[Batch]] = {}
        self.inputs = self._place(self._prepared[1])
        self.results = torch.zeros(len(self.inputs) + 1, device=device)
        self._has_dropout = has_dropout(session.pipe, session.config)

    def __call__(self, learning_rate: float) -> Tensor:
        """Take the next step and return ``results``, which the following step overwrites.

        On a GPU the call returns before the device has finished; meanwhile it prepares the batches of the next step.
        """
        session = self.session
        self.load(session.step, learning_rate)
        compute = session.graphs.get(self.shape, self.compute)
        compute()
        session.step += 1
        if not step_skipped(session):
            update_averages(session)
        if session.accelerator.device.type == "cuda":
            self._prepared = session.step, make_batches(session, session.step)
        return self.results

    @property
    def shape(self) -> torch.Size:
        """Shape of the latents of a batch. It tells the buckets apart."""
        return self.inputs[0].latents.shape

    def _place(self, batches: list[Batch]) -> list[Batch]:
        """Return the place on the device for batches of this shape."""
        shape, device = batches[0].latents.shape, self.session.accelerator.device
        if shape not in self._places:
            self._places[shape] = [batch.map(lambda tensor: tensor.to(device, copy=True)) for batch in batches]
        return self._places[shape]

    def load(self, step: int, learning_rate: float) -> None:
        """Copy the batches of ``step`` and the learning rate to the device, and seed dropout."""
        session = self.session
        prepared, batches = self._prepared
        batches = batches if prepared == step else make_batches(session, step)
        self.inputs = self._place(batches)
        for target, source in zip(self.inputs, batches, strict=True):
            for ours, theirs in zip(target.tensors, source.tensors, strict=True):
                ours.copy_(theirs, non_blocking=True)
        set_learning_rate(session.optimizer, learning_rate)
        if self._has_dropout:
            process = session.accelerator.process_index
            torch.manual_seed(objective.stable_seed(session.config.seed, "dropout", step, process))

    def compute(self) -> None:
        """Forward and backward pass of every batch, clipping and the optimiser's step."""
        session, accelerator = self.session, self.session.accelerator
        accelerator.step = 0  # an error may have interrupted an accumulation
        for parameter in session.parameters.values():
            parameter.grad = None
        for number, batch in enumerate(self.inputs):
            with accelerator.accumulate(session.denoiser):
                loss = batch_loss(session, batch)
                self.results[number] = loss.detach()
                accelerator.backward(loss)
        trained = [parameter for parameter in session.parameters.values() if parameter.requires_grad]
        session.processes.average_gradients(session.step, trained)
        norm: Any = accelerator.clip_grad_norm_(trained, session.config.max_grad_norm)
        if not accelerator.scaler:  # which skips steps whose gradients are not finite
            self.results[-1] = norm
        with unchanged_norms(session.parameters):
            session.optimizer.step()


def batch_loss(session: Session, batch: Batch) -> Tensor:
    """Return the training loss of a batch on the device, regularisers of the method included."""
    config = session.config
    target = preservation_target(session, batch) if config.uses_base_output else batch.target
    if config.options["timestep_rank"] < 1:
        shares = 1 - batch.timesteps / session.noise_process.timesteps
        for model in session.trained_components.values():
            activation.set_rank_shares(model, shares)
    prediction = session.denoiser(batch.latents, batch.timesteps, batch.text)
    classes = config.batch_size if config.prior_loss_weight else 0
    loss = objective.denoising_loss(
        prediction,
        target,
        batch.weights,
        classes,
        config.prior_loss_weight,
        config.loss_type,
        batch.thresholds,
        batch.mask,
    )
    penalties = [attachment.penalty(model, config.name) for model in session.trained_components.values()]
    return loss + sum(penalty.to(loss.device) for penalty in penalties if penalty is not None)


def step_skipped(session: Session) -> bool:
    """Return whether the float16 loss scaler skipped the last step. Raises TrainingError after MAX_SKIPPED in a row."""
    session.skipped_steps = session.skipped_steps + 1 if session.accelerator.optimizer_step_was_skipped else 0
    if session.skipped_steps >= MAX_SKIPPED:
        raise not_finite(session, "gradient", float("nan"), session.step)
    return session.skipped_steps > 0


def not_finite(session: Session, what: str, value: float, step: int) -> TrainingError:
    """Return the error for a loss or gradient that is not finite at ``step``, counted from 1."""
    saved = session.run.checkpoints()
    checkpoint = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint has been saved yet"
    return TrainingError(
        f"the {what} became {value} at step {step}; {checkpoint}; "
        f"try a lower --learning-rate than {session.config.learning_rate:g}, or --dtype float32, under another --name"
    )


def update_averages(session: Session) -> None:
    """Update the moving averages, with a smaller decay in the first steps."""
    if averages := session.moving_averages:
        decay = min(session.config.ema_decay, (1 + session.step) / (10 + session.step))
        current = [session.parameters[key].detach() for key in averages]
        torch._foreach_lerp_(list(averages.values()), current, 1 - decay)
