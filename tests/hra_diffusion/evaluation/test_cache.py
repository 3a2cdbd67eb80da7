"""Embeddings on disk: embedded once per image and model."""

import shutil

import torch
from conftest import random_images

from hra_diffusion.evaluation.cache import CachedEmbedder
from hra_diffusion.evaluation.dino import HUB_PROCESSOR, Dino


def test_an_image_is_embedded_once_also_by_another_process(dino_folder, tmp_path):
    images = random_images(3)
    expected = Dino(dino_folder).embed_images(images)
    first = CachedEmbedder(Dino(dino_folder), tmp_path)
    first.embed_images([images[2], images[0], images[2]])
    second = CachedEmbedder(Dino(dino_folder), tmp_path)
    embedded = []
    original = second.embedder.embed_images
    second.embedder.embed_images = lambda given: embedded.extend(given) or original(given)
    torch.testing.assert_close(second.embed_images(images), expected, atol=1e-6, rtol=1e-5)
    assert embedded == [images[1]]


def test_another_model_or_preprocessing_has_its_own_embeddings(dino_folder, dinov2_folder, tmp_path):
    models = [Dino(dino_folder), Dino(dinov2_folder), Dino(dino_folder, preprocessing=HUB_PROCESSOR)]
    for model in models:
        cached = CachedEmbedder(model, tmp_path)
        cached.embed_images(random_images(1))
        torch.testing.assert_close(cached.embed_images(random_images(1)), model.embed_images(random_images(1)))
    assert len(list(tmp_path.iterdir())) == 3


def test_the_same_weights_in_another_folder_share_their_embeddings(dino_folder, tmp_path):
    copy = shutil.copytree(dino_folder, tmp_path / "copy")
    assert CachedEmbedder(Dino(dino_folder), tmp_path).folder == CachedEmbedder(Dino(copy), tmp_path).folder


def test_a_damaged_file_is_replaced(dino_folder, tmp_path):
    cached, images = CachedEmbedder(Dino(dino_folder), tmp_path), random_images(1)
    expected = cached.embed_images(images)
    (file,) = cached.folder.iterdir()
    file.write_bytes(b"damaged")
    torch.testing.assert_close(cached.embed_images(images), expected)
    assert file.stat().st_size > 64
