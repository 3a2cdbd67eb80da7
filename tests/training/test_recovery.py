"""Out of memory during training."""

import pytest
import torch
from conftest import StopAfter, tiny_pipe, weights

from training.errors import TrainingError
from training.loop import train
from training.runs.events import Checkpoint, Notice, Step
from training.runs.lookup import find
from training.runs.run_folder import RunError


def test_out_of_memory_reduces_memory_once(settings, tmp_path):
    """A listener raises the error of a full device."""
    events = []

    def full_device(event):
        events.append(event)
        if isinstance(event, Step) and event.step == 1 and not any(isinstance(e, Notice) for e in events):
            raise torch.OutOfMemoryError("CUDA out of memory")

    adapter = train(settings(sample_every=0), tmp_path / "a", [full_device])
    (notice,) = (event.message for event in events if isinstance(event, Notice))
    saved = "batch size 1, gradient accumulation steps 2, gradient checkpointing True"
    assert f"continuing from the previous step with {saved}" in notice
    assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3, 4]
    assert weights(adapter).isfinite().all() and find(tmp_path / "a", "Rex").config.batch_size == 1


def test_a_run_with_reduced_memory_resumes_with_its_settings(settings, tmp_path):
    def full_device(event):
        if isinstance(event, Checkpoint) and event.step == 2:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)")

    config = settings(sample_every=0)
    whole = train(config, tmp_path / "whole", [full_device])
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [full_device, StopAfter(3)])
    assert torch.equal(weights(train(config, tmp_path / "parts", resume=True)), weights(whole))
    with pytest.raises(RunError, match="started with other values: batch_size 1, not 8"):
        train(settings(sample_every=0, batch_size=8), tmp_path / "whole", resume=True)


def test_out_of_memory_during_accumulation_clears_gradients(settings, tmp_path):
    """The second of three batches fails; the gradients of the first must not count twice."""
    changes = {"sample_prompts": [], "prior_loss_weight": 0, "train_text_encoder": False}
    passes, pipe = [], tiny_pipe()

    def full_device(*_):
        passes.extend([torch.is_grad_enabled()])
        if sum(passes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = pipe.unet.register_forward_pre_hook(full_device)
    reduced = train(settings(**changes, gradient_accumulation_steps=3), tmp_path / "a", pipe=pipe)
    hook.remove()
    smallest = settings(**changes, batch_size=1, gradient_accumulation_steps=6, gradient_checkpointing=True)
    assert torch.equal(weights(reduced), weights(train(smallest, tmp_path / "b", pipe=tiny_pipe())))


def test_out_of_memory_with_nothing_left_to_save(settings, tmp_path):
    def full_device(event):
        if isinstance(event, Step):
            raise torch.OutOfMemoryError("CUDA out of memory")

    smallest = settings(gradient_checkpointing=True, batch_size=1)
    with pytest.raises(TrainingError, match="nothing left to save; try a smaller --resolution"):
        train(smallest, tmp_path, [full_device])
