"""Training with torch.compile. The compiler's backend is "eager", which only traces: the others take minutes."""

import functools

import pytest
import torch
from conftest import tiny_pipe, weights
from torch._dynamo.utils import counters

from training.errors import TrainingError
from training.loop import train
from training.runs.events import Sample, Step

QUICK = {"method": "lora", "prior_loss_weight": 0, "train_text_encoder": False}


def test_compiled_blocks_train_and_generate_as_uncompiled_ones(settings, tmp_path, monkeypatch):
    plain = weights(train(settings(**QUICK), tmp_path / "plain", pipe=tiny_pipe()))
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    counters.clear()
    pipe, compiled, events = tiny_pipe(), {}, []

    def listen(event):
        events.append(event)
        if isinstance(event, Step):
            blocks = [module for module in pipe.unet.modules() if module._compiled_call_impl is not None]
            compiled[event.step] = {type(block).__name__ for block in blocks}

    config = settings(**QUICK, compile=True)
    assert torch.equal(weights(train(config, tmp_path / "compiled", [listen], pipe=pipe)), plain)
    assert compiled == {step: {"BasicTransformerBlock"} for step in (1, 2, 3, 4)}
    assert counters["stats"]["unique_graphs"] > 1, "in training and for samples"
    assert [event.step for event in events if isinstance(event, Sample)] == [0, 2, 4]
    assert all(module._compiled_call_impl is None for module in pipe.unet.modules()), "the pipeline is as it was"


def test_without_a_compiler_the_error_says_what_to_install(settings, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("Failed to find C++ compiler.\nmore")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(TrainingError, match=r"--compile does not work here: Failed to find C\+\+ compiler.; install"):
        train(settings(**QUICK, compile=True), tmp_path)
