"""A stopped run."""

import pytest
from conftest import StopAfter, weights

from training import config as configs
from training.loop import train


@pytest.fixture(scope="session")
def stopped_run(tmp_path_factory, photos, base_folder):
    """The configuration and folder of a run stopped at step 3 of 5, with checkpoints of steps 2 and 3, and the weights
    of the same run without the stop. Tests resume copies of the folder."""
    root = tmp_path_factory.mktemp("stopped")
    values = {"name": "Rex", "photos": [str(photos)], "class_noun": "dog", "base": str(base_folder), "device": "cpu",
              "resolution": 64, "batch_size": 2, "learning_rate": 1e-2, "steps": 5, "checkpoint_every": 2,
              "sample_prompts": [], "prior_loss_weight": 0, "train_text_encoder": False}  # fmt: skip
    config = configs.parse(values)
    whole = weights(train(config, root / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config, root / "out", [StopAfter(3)])
    return config, root / "out" / "Rex", whole
