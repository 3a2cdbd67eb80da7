"""Out of memory: what a run gives up by itself, once, to go on."""

import gc

import torch

from training import config as configs
from training.config import TrainConfig
from training.memory.fit import changes, recompute, smaller_batches
from training.runs.events import Notice
from training.session import Session, TrainingError, checkpoint_gradients

GIVEN_UP = ("gradient_checkpointing", "batch_size", "gradient_accumulation_steps")


def reduced_memory(config: TrainConfig) -> TrainConfig | None:
    """The run with less memory for more time, the result being as good: the same photos in every step.

    It turns gradient checkpointing on and takes the batch in parts, accumulated, each part with noise of its own; None
    where neither is left to do.
    """
    given_up = recompute(config) | smaller_batches(config)
    return config.model_copy(update=given_up) if given_up else None


def as_lightened(config: TrainConfig, before: TrainConfig) -> TrainConfig:
    """A resumed run with what ``before``, its own configuration, gave up when memory ran out, once or several times."""
    after: TrainConfig | None = config
    while after := reduced_memory(after):
        if all(getattr(after, name) == getattr(before, name) for name in GIVEN_UP):
            return after
    return config


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's memory, or the computer's, did not suffice."""
    said = str(error).lower()  # on Macs it is a plain RuntimeError
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "can't allocate memory" in said


def step_down(session: Session, error: RuntimeError) -> None:
    """Make the run lighter where it stands, and say so: it goes on from the last whole step.

    Raises TrainingError, saying what else could be changed, where nothing is left to give up.
    """
    before, after = session.config, reduced_memory(session.config)
    if after is None:
        raise TrainingError(
            f"out of memory at step {session.step + 1}, with nothing left to give up; try a smaller --resolution or "
            "--rank, --dtype bfloat16, --base-weights int8, or --no-train-text-encoder, under another --name"
        ) from error
    given_up = f"going on from the step before with {changes(before, after)}"
    session.clock.emit(Notice(f"out of memory at step {session.step + 1}; {given_up}"))
    session.config = after
    accelerator = session.accelerator
    accelerator.gradient_accumulation_steps = after.gradient_accumulation_steps
    accelerator.step = 0  # it may have stopped within a batch
    for parameter in session.parameters.values():  # the prepared optimiser clears nothing within an accumulation
        parameter.grad = None
    checkpoint_gradients(session.pipe)
    if accelerator.is_main_process:
        configs.write(after, session.run.folder / "config.yaml")
    gc.collect()
    torch.cuda.empty_cache()
