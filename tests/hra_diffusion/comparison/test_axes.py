"""X/Y grids: every cell equals a single generation, in few denoising batches; axes are checked."""

import json

import numpy as np
import pytest
from conftest import distance, pipe_with_two_adapters
from PIL import Image

from hra_diffusion.adapters import attachment
from hra_diffusion.comparison.axes import AXES, Axis, GridPlan, draw_axes
from hra_diffusion.errors import UserError
from hra_diffusion.generation.png import PNG_KEY, read_png, save_png
from hra_diffusion.generation.requests import Settings
from hra_diffusion.generation.sampling import generate

FIXED = {"checkpoint": "a", "strength": 1.0, "guidance": None, "steps": 2, "scheduler": "ddim", "seed": 3,
         "prompt": "a {subject}"}  # fmt: skip
ADAPTERS = {"a": "a", "b": "b", "base": ""}


@pytest.fixture(scope="module")
def pipe():
    pipe = pipe_with_two_adapters()
    for name in "ab":
        attachment.remember(pipe.unet, name, {"trigger": "sks", "class_noun": "dog"})
    return pipe


def grid(pipe, x, y, **more):
    plan = GridPlan(Axis.parse(*x), Axis.parse(*y), FIXED, Settings())
    return draw_axes(pipe, plan, ADAPTERS, **more)


def cells(image, columns, rows):
    """The pictures of a grid, cut out of it."""
    side, gap, margin = 16, 6, 14
    left, top = image.width - margin - columns * (side + gap), image.height - margin - rows * (side + gap)
    return [
        image.crop((left + c * (side + gap), top + r * (side + gap), left + c * (side + gap) + side,
                    top + r * (side + gap) + side))
        for r in range(rows) for c in range(columns)
    ]  # fmt: skip


def test_every_cell_equals_a_single_picture(pipe):
    made = cells(grid(pipe, ("checkpoint", ["a", "b", "base"]), ("strength", ["0.5", "1"])), 3, 2)
    expected = [
        generate(pipe, "a sks dog" if name else "a dog", {name: strength} if name else {}, 3,
                 settings=Settings(2, scheduler="ddim"))[0]
        for strength in (0.5, 1.0) for name in ("a", "b", "")
    ]  # fmt: skip
    assert [distance(own, other) < 0.5 for own, other in zip(made, expected, strict=True)] == [True] * 6
    assert distance(made[2], made[5]) < 0.5 < distance(made[0], made[1])


@pytest.mark.parametrize(
    ("x", "y", "settings"),
    [
        (("guidance", ["1", "5"]), ("steps", ["1", "3"]),
         [Settings(steps, scale, "ddim") for steps in (1, 3) for scale in (1.0, 5.0)]),
        (("scheduler", ["ddim", "euler"]), ("seed", ["3"]), [Settings(2, None, name) for name in ("ddim", "euler")]),
    ],
)  # fmt: skip
def test_settings_vary_as_well(pipe, x, y, settings):
    made = cells(grid(pipe, x, y), len(x[1]), len(y[1]))
    for own, one in zip(made, settings, strict=True):
        assert distance(own, generate(pipe, "a sks dog", {"a": 1.0}, 3, settings=one)[0]) < 0.5


def test_prompts_and_seeds_vary(pipe):
    made = cells(grid(pipe, ("prompt", ["a {subject}", "a red {subject}"]), ("seed", ["3", "4"])), 2, 2)
    for index, (seed, prompt) in enumerate((s, p) for s in (3, 4) for p in ("a sks dog", "a red sks dog")):
        alone = generate(pipe, prompt, {"a": 1.0}, seed, settings=Settings(2, scheduler="ddim"))[0]
        assert distance(made[index], alone) < 0.5


def test_cells_of_the_same_settings_share_denoising_batches(pipe):
    batches = []
    grid(pipe, ("checkpoint", ["a", "b", "base"]), ("seed", ["1", "2"]), on_step=lambda step: batches.append(step))
    assert [(step.step, len(step.indices)) for step in batches] == [(1, 6), (2, 6)], "six cells in one batch"
    batches.clear()
    grid(pipe, ("steps", ["1", "2"]), ("seed", ["1", "2", "3"]), on_step=lambda step: batches.append(step))
    assert sorted((step.steps, len(step.indices)) for step in batches) == [(1, 3), (2, 3), (2, 3)]
    assert {index for step in batches for index in step.indices} == set(range(6)), "numbered by their cells"


def test_the_file_holds_the_axes_and_the_settings(pipe, tmp_path):
    image = grid(pipe, ("steps", ["1", "2"]), ("prompt", ["a {subject}", "a very long prompt of a {subject} " * 6]))
    saved = read_png(save_png(image, tmp_path / "grid.png"))
    assert saved["x"] == {"axis": "steps", "values": [1, 2]} and saved["y"]["axis"] == "prompt"
    assert saved["seed"] == 3 and saved["steps"] == 1 and saved["adapters"] == {"a": 1.0}
    with Image.open(tmp_path / "grid.png") as file:
        assert "X Type: steps, X Values: 1, 2" in file.info["parameters"] and json.loads(file.info[PNG_KEY])
        top, left = np.asarray(file.convert("L"))[:44, 60:], np.asarray(file.convert("L"))[54:, :100]
    assert top.min() < 200 and left.min() < 200, "columns and rows are labelled"


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("colour", ["red"], "there is no axis 'colour'; use one of checkpoint, strength"),
        ("steps", ["ten"], "the axis steps can't be 'ten'; each value is a whole number from 1 to 1000"),
        ("steps", ["0"], "from 1 to 1000"),
        ("strength", ["nan"], "a number from -10 to 10"),
        ("scheduler", ["magic"], "one of dpm"),
        ("seed", ["-1"], "from 0 to"),
        ("prompt", ["  "], "a text"),
        ("guidance", [], "has no values"),
        ("guidance", ["5", "5.0"], "has 5.0 twice"),
    ],
)
def test_invalid_values_are_named(name, values, said):
    with pytest.raises(UserError, match=said):
        Axis.parse(name, values)


def test_invalid_grids_are_refused():
    steps, seeds = Axis("steps", (1, 2)), Axis("seed", tuple(range(61)))
    with pytest.raises(UserError, match="both axes are steps"):
        GridPlan(steps, steps, FIXED, Settings())
    with pytest.raises(UserError, match="122 pictures; at most 120"):
        GridPlan(steps, seeds, FIXED, Settings())
    assert set(FIXED) == set(AXES)
