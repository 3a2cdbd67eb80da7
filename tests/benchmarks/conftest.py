"""A folder of generated sprites."""

from pathlib import Path

import pytest
from sprites import write_sprites


@pytest.fixture(scope="session")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a coloured disc as the sprite of every object."""
    return write_sprites(tmp_path_factory.mktemp("sprites"))
