"""Out of memory: what a run gives up by itself, once, to go on."""

import gc

import torch

from training import config as configs
from training.config import TrainConfig
from training.events import Notice
from training.fit import changes
from training.session import Session, TrainingError, checkpoint_gradients


def lighter(config: TrainConfig) -> TrainConfig | None:
    """The run with less memory for more time, the result being the same but for rounding.

    It turns gradient checkpointing on and takes the batch in two halves, accumulated; None where neither is left to do.
    """
    changes: dict[str, object] = {}
    if not config.gradient_checkpointing:
        changes["gradient_checkpointing"] = True
    if config.batch_size % 2 == 0:
        changes |= {"batch_size": config.batch_size // 2, "gradient_accumulation": config.gradient_accumulation * 2}
    return config.model_copy(update=changes) if changes else None


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's memory, or the computer's, did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def step_down(session: Session, error: RuntimeError) -> None:
    """Make the run lighter where it stands, and say so: it goes on from the last whole step.

    Raises TrainingError, saying what else could be changed, where nothing is left to give up.
    """
    before, after = session.config, lighter(session.config)
    if after is None:
        raise TrainingError(
            f"out of memory at step {session.step + 1}, with nothing left to give up; try a smaller --resolution or "
            "--rank, --dtype bfloat16, --base-weights int8, or --no-train-text-encoder, under another --name"
        ) from error
    given_up = f"going on from the step before with {changes(before, after)}"
    session.clock.emit(Notice(f"out of memory at step {session.step + 1}; {given_up}"))
    session.config = after
    accelerator = session.accelerator
    accelerator.gradient_accumulation_steps = after.gradient_accumulation
    accelerator.step = 0  # it may have stopped within a batch
    session.optimizer.zero_grad()
    checkpoint_gradients(session.pipe)
    if accelerator.is_main_process:
        configs.write(after, session.run.folder / "config.yaml")
    gc.collect()
    torch.cuda.empty_cache()
