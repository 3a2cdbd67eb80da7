"""Fitting a run into a memory limit."""

import pytest
import torch
from conftest import StopAfter, tiny_pipe, weights

from hra_diffusion.errors import UserError
from training.config import ConfigError
from training.loop import train
from training.memory import fit
from training.memory.footprint import GIB, predict_footprint
from training.memory.savings import describe_changes
from training.runs.events import Notice, Plan
from training.runs.lookup import find


def limit_between(config, reduced):
    """Return a memory limit between the peaks of two runs."""
    heavy, light = predict_footprint(config, "cpu").peak, predict_footprint(reduced, "cpu").peak
    assert heavy - light > 0.02 * GIB
    return f"{(heavy + light) / 2 / GIB:.2f}GB"


HEAVY = {"resolution": 128, "batch_size": 4, "prior_loss_weight": 0, "sample_prompts": [], "steps": 2,
         "checkpoint_every": 100, "sample_every": 0}  # fmt: skip


def test_savings_are_chosen_in_order(settings, monkeypatch):
    """bfloat16 first, where the machine computes it."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    lean = settings(**HEAVY, dtype="bfloat16", gradient_checkpointing=True)
    config = settings(**HEAVY, memory_limit=limit_between(settings(**HEAVY, dtype="bfloat16"), lean))
    chosen, footprint = fit.fit_to_limit(config, "cpu")
    assert describe_changes(config, chosen) == "dtype bfloat16, gradient checkpointing True"
    assert footprint.peak <= fit.limit_bytes(config)


def test_a_run_with_a_limit_names_its_savings_and_resumes_exactly(settings, tmp_path, monkeypatch):
    """On a machine without bfloat16."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    lean = settings(**HEAVY, gradient_checkpointing=True)
    config = settings(**HEAVY, memory_limit=limit_between(settings(**HEAVY), lean))
    events = []
    whole = weights(train(config, tmp_path / "whole", [events.append]))
    (notice,) = (event.message for event in events if isinstance(event, Notice) and "to fit in" in event.message)
    assert notice.endswith(": gradient checkpointing True")
    (plan,) = (event for event in events if isinstance(event, Plan))
    assert plan.memory == plan.phases[plan.phase] <= fit.limit_bytes(config)
    chosen = find(tmp_path / "whole", "Rex").config
    assert (chosen.dtype, chosen.gradient_checkpointing, chosen.batch_size) == ("float32", True, 4)

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [StopAfter(1)])
    assert torch.equal(weights(train(config, tmp_path / "parts", resume=True)), whole)


def test_a_limit_below_all_savings_is_rejected(settings):
    with pytest.raises(UserError, match=r"does not fit in 0.1GB: .* it still needs about 0\.\d GB, .*--resolution"):
        fit.fit_to_limit(settings(memory_limit="0.1GB"), "cuda")


@pytest.mark.parametrize("text", ["8", "much", "8MB", "-3GB"])
def test_a_limit_that_is_not_in_gb_is_rejected(settings, text):
    with pytest.raises(ConfigError, match='as "8GB"'):
        settings(memory_limit=text)


def test_a_loaded_pipeline_keeps_its_dtype(settings):
    """bfloat16 would be the first saving, but the pipeline is already loaded."""
    changes, pipe = {"resolution": 128, "batch_size": 4, "prior_loss_weight": 0, "sample_prompts": []}, tiny_pipe()
    heavy, light = (
        predict_footprint(settings(**changes, gradient_checkpointing=lean), "cpu", pipe).peak for lean in (0, 1)
    )
    chosen, _ = fit.fit_to_limit(settings(**changes, memory_limit=f"{(heavy + light) / 2 / GIB:.2f}GB"), "cpu", pipe)
    assert chosen.gradient_checkpointing and (chosen.dtype, chosen.base_weights) == ("float32", "full")


@pytest.mark.filterwarnings("ignore:memory is predicted with the sizes of FLUX.2 klein base 4B")
def test_flux2_klein_fits_into_24_gb(settings):
    """At 1024 pixels in bfloat16. The text encoder is as large as the transformer, and leaves before training."""
    config = settings(
        base="black-forest-labs/FLUX.2-klein-base-4B", resolution=1024, batch_size=1, dtype="bfloat16", method="hra",
        prior_loss_weight=0, train_text_encoder=False, sample_prompts=[], memory_limit="24GB",
    )  # fmt: skip
    chosen, footprint = fit.fit_to_limit(config, "cuda")
    assert chosen.base_weights == "full" and chosen.gradient_checkpointing
    assert footprint.peak <= fit.limit_bytes(config) and footprint.phases["cache"] > 15e9
    assert footprint.phases["train"] > 7.75e9
