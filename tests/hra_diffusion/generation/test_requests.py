"""Settings: validation against the base model."""

import pytest

from hra_diffusion.errors import UserError
from hra_diffusion.generation.requests import Settings, complete_settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(scheduler="magic"), "unknown scheduler 'magic'; use one of dpm"),
        (Settings(width=17), "multiples of 4"),
        (Settings(height=100_000), "up to 4096"),
        (Settings(steps=0), "steps must be from 1 to 1000"),
    ],
)
def test_invalid_settings(pipe, settings, message):
    with pytest.raises(UserError, match=message):
        complete_settings(pipe, settings)
