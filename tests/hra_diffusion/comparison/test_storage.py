"""Stored comparisons: what is loaded equals what was saved, also from files of earlier versions."""

import json

import pytest
from damage import GARBAGE, damage
from PIL import Image

import hra_diffusion as hra
from hra_diffusion.comparison.storage import load_comparison, save_comparison
from hra_diffusion.errors import Note, UserError
from hra_diffusion.generation.requests import Request

V0_1 = {
    "columns": [{"label": "base", "adapters": {}, "subject": "dog", "class_noun": "", "costs": {}}],
    "scores": {"base": {"prompt": {"mean": 0.3, "deviation": 0.0}}},
    "prompts": ["a {subject}"],
    "seeds": [1],
    "notes": [],
    "grid": "grid.png",
    "seconds": 0.5,
    "cells": [
        {
            "column": "base",
            "picture": "pictures/000-a-dog-seed1-base.png",
            "base": "tiny-sd",
            "dtype": "float32",
            "prompt": "a dog",
            "seed": 1,
            "adapters": {},
            "negative_prompt": "",
            "steps": 2,
            "guidance_scale": 7.5,
            "scheduler": "dpm++",
            "width": 16,
            "height": 16,
            "score": {"subject": None, "prompt": 0.3, "nearest": None, "variety": None, "drift": None},
            "difference_from_base": 0.0,
        }
    ],
}
"""``results.json`` as version 0.1 wrote it."""


def test_a_saved_comparison_is_loaded_unchanged(pipe, tmp_path):
    photos = [Image.new("RGB", (900, 600), color) for color in ("red", "green")]
    saved = hra.compare(pipe, [hra.Variant("base", {}, "dog")], ["a {subject}"], [1, 2], hra.Settings(steps=2), photos)
    save_comparison(saved, tmp_path)
    loaded = load_comparison(tmp_path)
    assert [(photo.size, photo.getpixel((0, 0))) for photo in loaded.photos] == [
        ((512, 341), (255, 0, 0)), ((512, 341), (0, 128, 0)),
    ], "small copies, as the training photos may be gone"  # fmt: skip
    assert loaded.variants == saved.variants and loaded.prompts == saved.prompts and loaded.seeds == saved.seeds
    assert [sample.request for sample in loaded.samples] == [sample.request for sample in saved.samples]
    assert loaded.samples[1].image.tobytes() == saved.samples[1].image.tobytes()


def test_a_missing_comparison_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no whole comparison"):
        load_comparison(tmp_path / "nowhere")


@pytest.mark.parametrize("change", [
    {"seeds": ["x"]}, {"prompts": [3]}, {"columns": []}, {"cells": []}, {"seeds": [1, 2]}, {"seconds": None},
    {"cells": [V0_1["cells"][0] | {"width": "wide"}]}, {"cells": [V0_1["cells"][0] | {"adapters": [1]}]},
])  # fmt: skip
def test_a_damaged_comparison_is_set_aside(tmp_path, change):
    for content in (json.dumps(V0_1 | change).encode(), *(GARBAGE.values() if "seconds" in change else ())):
        damage(tmp_path / "results.json", content)
        with pytest.warns(Note, match="set aside"), pytest.raises(UserError, match="no whole comparison"):
            load_comparison(tmp_path)


def test_a_comparison_of_version_0_1_is_loaded(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (16, 16), "red").save(tmp_path / V0_1["cells"][0]["picture"])
    (tmp_path / "results.json").write_text(json.dumps(V0_1))
    loaded = load_comparison(tmp_path)
    (sample,) = loaded.samples
    assert [variant.label for variant in loaded.variants] == ["base"] and sample.variant == "base"
    assert sample.request == Request("a dog", 1) and sample.score is not None and sample.score.prompt == 0.3
    assert sample.image.getpixel((0, 0)) == (255, 0, 0) and loaded.settings.steps == 2
