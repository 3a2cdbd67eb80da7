"""PNG files with their settings."""

import pytest
from conftest import distance, stir, tiny_pipe
from PIL import Image

from hra_diffusion.adapters import attachment
from hra_diffusion.generation.png import read_png, save_png
from hra_diffusion.generation.requests import Settings
from hra_diffusion.generation.sampling import generate

FEW = Settings(steps=4)


@pytest.fixture(scope="module")
def pipe():
    """A tiny pipeline with an adapter "a"."""
    pipe = tiny_pipe()
    attachment.attach(pipe.unet, "hra", {"rank": 4}, name="a")
    stir(attachment.adapter_parameters(pipe.unet, "a").values(), by=1.0)
    return pipe


def test_settings_are_stored_in_the_png(pipe, tmp_path):
    image = generate(pipe, "ein Hündchen", {"a": 0.5}, seed=9, settings=FEW, negative_prompt="blurry")[0]
    path = save_png(image, tmp_path / "p.png")
    made = read_png(path)
    assert made == {
        "base": "tiny",
        "dtype": "float32",
        "prompt": "ein Hündchen",
        "seed": 9,
        "adapters": {"a": 0.5},
        "negative_prompt": "blurry",
        "steps": 4,
        "guidance_scale": 7.5,
        "scheduler": "dpm++",
        "width": 16,
        "height": 16,
    }
    with Image.open(path) as stored:
        assert "Seed: 9" in stored.info["parameters"], "other tools read this"
    again = generate(pipe, made["prompt"], made["adapters"], made["seed"], settings=FEW, negative_prompt="blurry")[0]
    assert distance(again, image) == 0


def test_a_png_of_another_program_has_no_settings(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="no settings"):
        read_png(tmp_path / "x.png")
