"""Fixtures of a short run on a tiny base model."""

import pytest
from conftest import save_photos

from training import config as configs


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of three small photos, one of them with a caption."""
    folder = save_photos(tmp_path_factory.mktemp("photos"), 3)
    (folder / "1.txt").write_text("a sks dog at night")
    return folder


@pytest.fixture(scope="session")
def settings(photos, base_folder):
    """A function that returns the configuration of a short run with changes."""

    def make(**changes):
        values = {
            "name": "Rex",
            "photos": [str(photos)],
            "class_noun": "dog",
            "base": str(base_folder),
            "device": "cpu",
            "resolution": 64,
            "steps": 4,
            "batch_size": 2,
            "num_class_images": 2,
            "checkpoint_every": 2,
            "sample_every": 2,
            "sample_prompts": ["a {subject}"],
            "learning_rate": 1e-2,
            "train_text_encoder": True,
        }
        return configs.parse(values | changes)

    return make
