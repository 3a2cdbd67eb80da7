"""Savings, and training with each."""

import pytest
import torch
from conftest import StopAfter, weights
from safetensors.torch import load_file

from training.loop import train
from training.memory import savings


def test_bfloat16_is_no_saving_where_it_is_emulated(settings, monkeypatch):
    """Steps would take hundreds of times as long."""
    config = settings()
    for capability, changed in {"AVX512": {"dtype": "bfloat16", "mixed_precision": "no"}, "AVX2": {}}.items():
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda found=capability: found)
        assert savings.half_precision(config, "cpu") == changed


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_training_on_quantised_weights(settings, tmp_path, kind):
    """The adapter has the keys of one trained on weights in full precision."""
    config = settings(base_weights=kind, sample_prompts=[])
    whole = train(config, tmp_path / "whole")
    assert weights(whole).isfinite().all()
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [StopAfter(3)])
    assert torch.equal(weights(train(config, tmp_path / "parts", resume=True)), weights(whole))
    plain = train(settings(sample_prompts=[]), tmp_path / "plain")
    assert set(load_file(plain)) == set(load_file(whole)) and not torch.equal(weights(plain), weights(whole))


def test_a_run_with_the_8_bit_optimizer_resumes_exactly(settings, tmp_path):
    pytest.importorskip("bitsandbytes")
    config = settings(optimizer="adamw8bit", sample_prompts=[], checkpoint_every=100)
    whole = weights(train(config, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [StopAfter(3)])
    assert torch.equal(weights(train(config, tmp_path / "parts", resume=True)), whole)
