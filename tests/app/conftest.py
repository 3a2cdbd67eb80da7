"""A served page and a trained adapter on a tiny base model."""

import shutil

import pytest
from conftest import save_photos
from serving import serving

CONFIG = {"name": "Rex", "class_noun": "dog", "steps": 6, "batch_size": 2, "num_class_images": 2, "checkpoint_every": 3,
         "sample_every": 3, "sample_prompts": ["a {subject}"], "learning_rate": 1e-2}  # fmt: skip


@pytest.fixture
def page(tmp_path, base_folder):
    with serving(tmp_path / "outputs", base_folder) as page:
        yield page


@pytest.fixture(scope="session")
def trained(tmp_path_factory, base_folder):
    """An outputs folder with a trained adapter."""
    from training import config as configs
    from training.loop import train

    folder = tmp_path_factory.mktemp("trained")
    (folder / "photos" / "Rex").mkdir(parents=True)
    photos = save_photos(folder / "photos" / "Rex", 3)
    train(configs.parse(CONFIG | {"photos": [str(photos)], "base": str(base_folder), "device": "cpu"}), folder)
    return folder


@pytest.fixture
def output(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "outputs")


@pytest.fixture
def context(output, base_folder):
    """The state that the tabs share, without a server."""
    from app.inference_session import InferenceSession
    from app.web.context import AppContext

    return AppContext(output, InferenceSession(str(base_folder), "cpu"), [str(base_folder)], local=True)


@pytest.fixture
def small_benchmarks(monkeypatch):
    """Benchmarks on the page draw one picture per cell, and take the adapter of Rex instead of training one."""
    from app.protocols import plan, subjects
    from app.protocols.cells import Benchmark

    monkeypatch.setitem(plan.PICTURES, "mine", 1)
    monkeypatch.setattr(subjects, "OWN_PROMPTS", ("in the snow",))
    monkeypatch.setattr(subjects, "OWN_ATTRIBUTES", ())

    def train(benchmark, cell, folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(benchmark.output / "Rex" / "Rex.safetensors", folder / "adapter.safetensors")

    monkeypatch.setattr(Benchmark, "_train", train)
