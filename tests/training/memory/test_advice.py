"""Advice after a failed run."""

import pytest

from training import config as configs
from training.memory.advice import advise


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("the loss became nan at step 7; try a lower --learning-rate", {"learning_rate": 0.003}),
        ("out of memory; try a smaller batch size", {"gradient_checkpointing": True}),
        ("the process was killed, most likely for lack of memory", {"gradient_checkpointing": True}),
        ("the process was killed, most likely for want of memory", {"gradient_checkpointing": True}),
        ("hra can't be attached to x: rank 64 is too large for a.b, a 32 to 16 layer", {"options": {"rank": 8}}),
        ("the disk is full: x could not be written", {}),
    ],
)
def test_advice_by_reason_of_failure(settings, reason, changes):
    config = settings()
    advice = advise(reason, config)
    assert advice.text
    for field, value in changes.items():
        assert advice.changes[field] == value or advice.changes[field] == config.options | value
    assert bool(advice.changes) == bool(changes)


def test_advice_on_memory_after_gradient_checkpointing_is_a_smaller_batch(settings):
    even = advise("out of memory", settings(gradient_checkpointing=True, batch_size=4)).changes
    assert even == {"batch_size": 2, "gradient_accumulation_steps": 2}
    odd = advise("out of memory", settings(gradient_checkpointing=True, batch_size=3)).changes
    assert odd == {"batch_size": 1, "gradient_accumulation_steps": 3}, "each step still trains on three photos"
    assert not advise("out of memory", settings(gradient_checkpointing=True, batch_size=1)).changes


def test_a_lower_rank_takes_its_own_learning_rate_unless_one_was_given(settings):
    reason = "hra can't be attached to x: rank 128 is too large for a.b, a 64 to 64 layer"
    for given in (None, 0.5):
        config = settings(method="hra", options={"rank": 128}, learning_rate=given)
        again = configs.parse(config.model_dump(mode="json") | advise(reason, config).changes)
        usual = settings(method="hra", options={"rank": 32}, learning_rate=given)
        assert again.options["rank"] == 32 and again.learning_rate == usual.learning_rate
