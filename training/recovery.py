"""Recover from running out of memory: reduce the memory of the session, and continue from the last step."""

import gc

import torch

from training import config as configs
from training.errors import TrainingError
from training.memory.savings import describe_changes, reduced_memory
from training.runs.events import Notice
from training.session.model import enable_gradient_checkpointing
from training.session.state import Session


def reduce_memory(session: Session, error: Exception) -> None:
    """Reduce the memory of a running session, and emit a notice. Training continues after the last completed step.

    CUDA graphs, which hold the memory of a step also while samples are generated, are dropped before anything else.
    Raises TrainingError, with other settings to try, if nothing is left to reduce.
    """
    before, after = session.config, reduced_memory(session.config)
    if session.graphs:
        session.graphs, after = {}, before.model_copy(update={"cuda_graph": "off"})
    if after is None:
        raise TrainingError(
            f"out of memory at step {session.step + 1}, with nothing left to save; try a smaller --resolution or "
            "--rank, --dtype bfloat16, --base-weights int8, or --no-train-text-encoder, under another --name"
        ) from error
    changes = describe_changes(before, after)
    session.timer.emit(
        Notice(f"out of memory at step {session.step + 1}; continuing from the previous step with {changes}")
    )
    session.config = after
    accelerator = session.accelerator
    accelerator.gradient_accumulation_steps = after.gradient_accumulation_steps
    for parameter in session.parameters.values():
        parameter.grad = None
    if after.gradient_checkpointing:
        enable_gradient_checkpointing(session.pipe, after)
    if accelerator.is_main_process:
        configs.write(after, session.run.folder / "config.yaml")
    gc.collect()
    torch.cuda.empty_cache()
