"""An adapter file in an output folder."""

from pathlib import Path

import pytest
from conftest import stir

import hra_diffusion as hra
from hra_diffusion.adapters import attachment


@pytest.fixture
def adapter(pipe, tmp_path) -> Path:
    """File of an HRA adapter "Rex" for the tiny base, in a run folder with a folder of samples."""
    hra.attach(pipe.unet, "hra", {"rank": 4}, name="Rex")
    stir(attachment.adapter_parameters(pipe.unet, "Rex").values())
    path = tmp_path / "Rex" / "Rex.safetensors"
    hra.save(pipe, path, "Rex", "sks", "dog")
    (path.parent / "samples").mkdir()
    return path
