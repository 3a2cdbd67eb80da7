from collections.abc import Callable
from pathlib import Path

import pillow_heif
import pytest
from PIL import Image

pillow_heif.register_heif_opener()  # for saving HEIC files


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Save an image under ``tmp_path`` and return its path."""

    def save_image(image: Image.Image, name: str, **options: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        image.save(path, **options)
        return path

    return save_image
