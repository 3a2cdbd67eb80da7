"""Memory before the start: counted on shapes as on real tensors, and what a run gives up to fit."""

import pytest
import torch
from conftest import StopAfter, tiny_pipe, tiny_xl_pipe, weights
from safetensors.torch import load_file

from hra_diffusion.errors import UserError
from hra_diffusion.models.meta import meta_pipeline
from training.config import ConfigError
from training.loop import train
from training.memory import fit, savings
from training.memory.footprint import GIB, predict_footprint, training_peak
from training.runs.events import Notice, Plan
from training.runs.lookup import find
from training.session.model import add_adapter


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True, "method": "shoft"}], ids=["plain", "lean"])
@pytest.mark.parametrize("make", [tiny_pipe, tiny_xl_pipe])
def test_a_step_on_shapes_holds_what_a_step_on_tensors_holds(settings, make, changes):
    """The same count of allocations, made by PyTorch itself, of a real step on the CPU."""
    config, peaks = settings(**changes), []
    for pipe in (make(), meta_pipeline(make())):
        add_adapter(config, pipe)
        peaks.append(training_peak(config, pipe, 64))
    real, foreseen = peaks
    assert foreseen == pytest.approx(real, rel=0.03), "some kernels take a workspace that shapes don't show"


def test_what_costs_memory_is_seen(settings):
    held = {}
    for label, changes in {
        "plain": {},
        "checkpointing": {"gradient_checkpointing": True},
        "half a batch": {"batch_size": 4},
        "bfloat16": {"dtype": "bfloat16"},
        "int8": {"base_weights": "int8"},
        "frozen text": {"train_text_encoder": False},
    }.items():
        config = settings(**{"batch_size": 8, "prior_loss_weight": 0, "resolution": 256} | changes)
        held[label] = predict_footprint(config, "cuda").phases["train"]
    assert all(held[label] < held["plain"] for label in held if label != "plain"), held
    assert held["half a batch"] - held["checkpointing"] > 0, "activations are most of it here"


def fit_between(config, lighter):
    """A limit that ``lighter`` keeps and ``config`` does not."""
    heavy, light = predict_footprint(config, "cpu").peak, predict_footprint(lighter, "cpu").peak
    assert heavy - light > 0.02 * GIB
    return f"{(heavy + light) / 2 / GIB:.2f}GB"


def test_a_run_that_must_fit_says_what_it_gives_up_and_resumes_exactly(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    changes = {"resolution": 128, "batch_size": 4, "prior_loss_weight": 0, "sample_prompts": [], "steps": 3,
               "checkpoint_every": 100, "sample_every": 0}  # fmt: skip
    lean = settings(**changes, dtype="bfloat16", gradient_checkpointing=True)
    config = settings(**changes, memory_limit=fit_between(settings(**changes, dtype="bfloat16"), lean))
    heard = []
    whole = weights(train(config, tmp_path / "whole", [heard.append]))
    (notice,) = (event.message for event in heard if isinstance(event, Notice) and "to fit in" in event.message)
    assert notice.endswith("dtype bfloat16, gradient checkpointing True")
    (plan,) = (event for event in heard if isinstance(event, Plan))
    assert plan.memory == plan.phases[plan.phase] <= fit.limit_bytes(config)
    chosen = find(tmp_path / "whole", "Rex").config
    assert (chosen.dtype, chosen.gradient_checkpointing, chosen.batch_size) == ("bfloat16", True, 4)

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [StopAfter(2)])
    assert torch.equal(weights(train(config, tmp_path / "parts", resume=True)), whole)


def test_bfloat16_is_no_way_out_where_it_is_emulated(settings, monkeypatch):
    """It would fit, and take hundreds of times as long."""
    config = settings()
    for capability, changed in {"AVX512": {"dtype": "bfloat16", "mixed_precision": "no"}, "AVX2": {}}.items():
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda found=capability: found)
        assert savings.half_precision(config, "cpu") == changed


def test_nothing_fits(settings):
    with pytest.raises(UserError, match=r"does not fit in 0.1GB: .* it still needs about 0\.\d GB, .*--resolution"):
        fit.fit_to_limit(settings(memory_limit="0.1GB"), "cuda")


@pytest.mark.parametrize("text", ["8", "much", "8MB", "-3GB"])
def test_a_limit_that_is_none(settings, text):
    with pytest.raises(ConfigError, match='as "8GB"'):
        settings(memory_limit=text)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_training_on_weights_in_fewer_bits(settings, tmp_path, kind):
    """Its file is an ordinary one: it loads on the base in full, as the other tests of files show."""
    config = settings(base_weights=kind, sample_prompts=[])
    whole = train(config, tmp_path / "whole")
    assert weights(whole).isfinite().all()
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [StopAfter(3)])
    assert torch.equal(weights(train(config, tmp_path / "parts", resume=True)), weights(whole))
    plain = train(settings(sample_prompts=[]), tmp_path / "plain")
    assert set(load_file(plain)) == set(load_file(whole)) and not torch.equal(weights(plain), weights(whole))


def test_a_pipeline_already_held_keeps_its_weights(settings):
    """It could be had in bfloat16, which comes first, but it is loaded."""
    changes, pipe = {"resolution": 128, "batch_size": 4, "prior_loss_weight": 0, "sample_prompts": []}, tiny_pipe()
    heavy, light = (
        predict_footprint(settings(**changes, gradient_checkpointing=lean), "cpu", pipe).peak for lean in (0, 1)
    )
    chosen, _ = fit.fit_to_limit(settings(**changes, memory_limit=f"{(heavy + light) / 2 / GIB:.2f}GB"), "cpu", pipe)
    assert chosen.gradient_checkpointing and (chosen.dtype, chosen.base_weights) == ("float32", "full")


def test_the_8_bit_optimiser_goes_on_bit_for_bit(settings, tmp_path):
    pytest.importorskip("bitsandbytes")
    config = settings(optimizer="adamw8bit", sample_prompts=[], checkpoint_every=100)
    whole = weights(train(config, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", [StopAfter(3)])
    assert torch.equal(weights(train(config, tmp_path / "parts", resume=True)), whole)
