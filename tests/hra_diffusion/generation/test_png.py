"""PNG files with their settings."""

import json

import pytest
from conftest import distance, stir, tiny_pipe
from PIL import Image, PngImagePlugin

from hra_diffusion.adapters import attachment
from hra_diffusion.errors import UserError
from hra_diffusion.generation.png import PNG_KEY, read_png, save_png
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


SETTINGS = {"base": "tiny", "dtype": "float32", "prompt": "a dog", "seed": 9, "adapters": {"a": 0.5}, "steps": 4,
            "negative_prompt": "", "guidance_scale": 7.5, "scheduler": "dpm++", "width": 16, "height": 16}  # fmt: skip


def with_text(path, text):
    info = PngImagePlugin.PngInfo()
    info.add_itxt(PNG_KEY, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    "text",
    ["null", "[1, 1]", "5", "", "{", "[" * 10**5, json.dumps(SETTINGS | {"seed": -1}),
     json.dumps({key: value for key, value in SETTINGS.items() if key != "steps"}),
     json.dumps(SETTINGS | {"adapters": ["a"]}), json.dumps(SETTINGS | {"adapters": {"a": float("nan")}}),
     json.dumps(SETTINGS | {"width": "x" * 10**5}), json.dumps(SETTINGS | {"notes": 5}),
     json.dumps(SETTINGS | {"original_size": [1]}), json.dumps(SETTINGS | {"seed": 10**30}),
     json.dumps(SETTINGS)[:-1] + ', "steps": ' + "9" * 5000 + "}"],
    ids=range(15),
)  # fmt: skip
def test_damaged_settings_are_reported(text, tmp_path):
    with pytest.raises(UserError, match=r"x\.png") as error:
        read_png(with_text(tmp_path / "x.png", text))
    assert len(str(error.value)) < 1500


def test_settings_of_later_versions_are_read_without_what_is_not_known(tmp_path):
    assert read_png(with_text(tmp_path / "x.png", json.dumps(SETTINGS | {"later": 1}))) == SETTINGS


def test_images_of_other_formats_are_not_opened(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", "GIF")
    with pytest.raises(UserError, match="no settings"):
        read_png(tmp_path / "x.png")
