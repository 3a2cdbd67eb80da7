"""DINO and DINOv2 with tiny random weights, compared with transformers' own forward pass."""

import pytest
import torch
from conftest import random_images
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import BitImageProcessorPil, Dinov2Model, ViTModel

from hra_diffusion.errors import UserError
from hra_diffusion.evaluation import dino, embedder
from hra_diffusion.evaluation.dino import Dino


def processor():
    return BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


@pytest.mark.parametrize(("fixture", "model_class"), [("dino_folder", ViTModel), ("dinov2_folder", Dinov2Model)])
def test_embeddings_are_the_class_token_of_transformers(fixture, model_class, request, monkeypatch):
    folder, images = request.getfixturevalue(fixture), random_images(3)
    monkeypatch.setattr(embedder, "BATCH_SIZE", 2)
    found = Dino(folder).embed_images(images)
    with torch.no_grad():
        model = model_class.from_pretrained(folder).eval()
        expected = model(**processor()(images=images, return_tensors="pt")).last_hidden_state[:, 0]
    torch.testing.assert_close(found, F.normalize(expected, dim=-1), atol=1e-5, rtol=1e-4)


def test_the_preprocessing_of_hras_authors_gives_other_embeddings(dino_folder):
    images = random_images(1)
    own, released = Dino(dino_folder), Dino(dino_folder, preprocessing=dino.HUB_PROCESSOR)
    assert not torch.allclose(own.embed_images(images), released.embed_images(images), atol=1e-3)


def test_a_missing_model_is_an_error_that_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"can't be loaded.*hf download"):
        Dino(tmp_path / "nothing")


def test_weights_that_lack_a_layer_are_an_error(dino_folder, tmp_path):
    weights = load_file(dino_folder / "model.safetensors")
    (tmp_path / "config.json").write_text((dino_folder / "config.json").read_text())
    lost = next(key for key in weights if "layernorm.weight" in key)
    save_file(
        {key: value for key, value in weights.items() if key != lost}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=f"lack {lost}"):
        Dino(tmp_path)
