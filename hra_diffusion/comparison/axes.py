"""X/Y grids: one image per pair of values of two axes, such as steps and guidance scale, from the same noise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from hra_diffusion.comparison.grid import BLUE, GAP, GRAY, MARGIN, fit
from hra_diffusion.errors import UserError
from hra_diffusion.generation.captured import CudaGraph
from hra_diffusion.generation.png import PNG_KEY, describe
from hra_diffusion.generation.previews import DenoisingStep, OnStep
from hra_diffusion.generation.requests import Request, Settings, complete_settings
from hra_diffusion.generation.sampling import generate_batch
from hra_diffusion.generation.schedulers import SCHEDULERS
from hra_diffusion.generation.subjects import PLACEHOLDER, with_subjects
from hra_diffusion.locks import lock_of
from hra_diffusion.pipeline import facts

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

MAX_CELLS = 120
LABEL_WIDTH = 200
"""Largest width of the labels of the rows, in pixels."""
BASE_CHECKPOINT, LAST_CHECKPOINT = "base", "last"
"""Values of the axis "checkpoint" for the base model alone, and for the adapter itself."""

Value = str | int | float


def _number(least: float, most: float, whole: bool = False) -> Callable[[str], Value]:
    def parse(text: str) -> Value:
        value = int(text) if whole else float(text)
        if not (math.isfinite(value) and least <= value <= most):
            raise ValueError
        return value

    return parse


def _name(text: str) -> Value:
    if not text.strip():
        raise ValueError
    return text.strip()


def _scheduler(text: str) -> Value:
    if text not in SCHEDULERS:
        raise ValueError
    return text


AXES: dict[str, tuple[Callable[[str], Value], str]] = {
    "checkpoint": (_name, "a step with a checkpoint, last, base or an adapter"),
    "strength": (_number(-10, 10), "a number from -10 to 10"),
    "guidance": (_number(0, 100), "a number from 0 to 100"),
    "steps": (_number(1, 1000, whole=True), "a whole number from 1 to 1000"),
    "scheduler": (_scheduler, f"one of {', '.join(SCHEDULERS)}"),
    "seed": (_number(0, 2**63 - 1, whole=True), "a whole number from 0 to 2^63 − 1"),
    "prompt": (_name, "a text"),
}
"""How the values of each axis are read, and what they are."""


@dataclass(frozen=True)
class Axis:
    """An axis of a grid and its values."""

    name: str
    values: tuple[Value, ...]

    @classmethod
    def parse(cls, name: str, texts: Sequence[str]) -> Axis:
        """Read an axis. Raises UserError for an unknown name, and for values that are invalid, missing or repeated."""
        if name not in AXES:
            raise UserError(f"there is no axis {name!r}; use one of {', '.join(AXES)}")
        parse, kind = AXES[name]
        values: list[Value] = []
        for text in texts:
            try:
                values.append(parse(text.strip()))
            except ValueError:
                raise UserError(f"the axis {name} can't be {text!r}; each value is {kind}") from None
        if not values:
            raise UserError(f"the axis {name} has no values; each is {kind}")
        if repeated := [value for value in values if values.count(value) > 1]:
            raise UserError(f"the axis {name} has {repeated[0]} twice")
        return cls(name, tuple(values))


@dataclass(frozen=True)
class GridPlan:
    """A grid: its axes, and the values of the axes that it does not vary.

    Attributes:
        x, y: columns and rows.
        fixed: a value for every name in ``AXES``. The axes replace two of them.
        settings: image size and size conditioning.
    """

    x: Axis
    y: Axis
    fixed: Mapping[str, Any]
    settings: Settings
    negative_prompt: str = ""

    def __post_init__(self):
        if self.x.name == self.y.name:
            raise UserError(f"both axes are {self.x.name}; choose two different ones")
        if (count := len(self.cells)) > MAX_CELLS:
            raise UserError(f"the grid has {count} pictures; at most {MAX_CELLS} are possible, so choose fewer values")

    @classmethod
    def of(
        cls, x: Sequence[str], y: Sequence[str], fixed: Mapping[str, Any], settings: Settings, negative_prompt: str = ""
    ) -> GridPlan:
        """Read the axes, each a name and its values. An empty ``y`` gives one row. Raises UserError."""
        columns = Axis.parse(x[0], x[1:])
        name = "prompt" if columns.name == "seed" else "seed"
        rows = Axis.parse(y[0], y[1:]) if y else Axis(name, (fixed[name],))
        plan = cls(columns, rows, fixed, settings, negative_prompt)
        if "strength" in (columns.name, rows.name) and plan.checkpoints == [BASE_CHECKPOINT]:
            raise UserError("the axis strength needs an adapter")
        return plan

    @property
    def cells(self) -> list[dict[str, Any]]:
        """The values of every cell, row by row."""
        return [{**self.fixed, self.x.name: x, self.y.name: y} for y in self.y.values for x in self.x.values]

    @property
    def checkpoints(self) -> list[str]:
        """The values of "checkpoint" that occur, each once."""
        return list(dict.fromkeys(cell["checkpoint"] for cell in self.cells))

    @property
    def cell_settings(self) -> list[Settings]:
        """The settings of every cell, row by row."""
        return [
            dataclasses.replace(
                self.settings, steps=cell["steps"], guidance_scale=cell["guidance"], scheduler=cell["scheduler"]
            )
            for cell in self.cells
        ]


def draw_axes(
    pipe: StableDiffusionPipeline,
    plan: GridPlan,
    adapters: Mapping[str, str],
    batch_size: int = 8,
    on_step: OnStep | None = None,
    cuda_graph: CudaGraph = "auto",
) -> Image.Image:
    """Generate a grid and draw it with labelled axes. Its settings are in ``image.info`` (see ``png.save_png``).

    Cells of the same steps, guidance scale and scheduler share denoising batches, whatever their adapters, strengths,
    prompts and seeds. Each image equals the one that ``generate`` makes.

    Args:
        adapters: the names of loaded adapters by the values of "checkpoint"; "" for the base model.
        on_step: called after every denoising step, with the indices of the cells.
        batch_size, cuda_graph: see ``generate_batch``.

    Raises UserError as ``generate_batch`` does.
    """
    with lock_of(pipe):
        requests = with_subjects(pipe, _requests(pipe, plan, adapters))
        settings = plan.cell_settings
        images: dict[int, Image.Image] = {}
        for shared in dict.fromkeys(settings):
            indices = [index for index, own in enumerate(settings) if own == shared]
            batch = [requests[index] for index in indices]
            made = generate_batch(pipe, batch, shared, batch_size, _of_cells(on_step, indices), cuda_graph)
            images |= zip(indices, made, strict=True)
        sheet = _sheet([images[index] for index in range(len(requests))], plan.x, plan.y)
        axes = {key: {"axis": axis.name, "values": axis.values} for key, axis in (("x", plan.x), ("y", plan.y))}
        sheet.info[PNG_KEY] = describe(pipe, requests[0], complete_settings(pipe, settings[0])) | axes
    return sheet


def _requests(pipe: StableDiffusionPipeline, plan: GridPlan, adapters: Mapping[str, str]) -> list[Request]:
    """Return the requests of the cells. ``{subject}`` is a class noun if a cell has no adapter."""
    nouns = (facts(pipe, name).get("class_noun") for name in adapters.values() if name)
    noun = next((noun for noun in nouns if noun), PLACEHOLDER)
    requests = []
    for cell in plan.cells:
        name = adapters[cell["checkpoint"]]
        active = ((name, cell["strength"]),) if name else ()
        prompt = cell["prompt"] if name else cell["prompt"].replace(PLACEHOLDER, noun)
        requests.append(Request(prompt, cell["seed"], active, plan.negative_prompt))
    return requests


def _of_cells(on_step: OnStep | None, indices: Sequence[int]) -> OnStep | None:
    """Return a callback that knows the requests of a call by their cells."""
    if on_step is None:
        return None

    def report(step: DenoisingStep) -> None:
        on_step(dataclasses.replace(step, indices=tuple(indices[index] for index in step.indices)))

    return report


def _sheet(images: Sequence[Image.Image], x: Axis, y: Axis) -> Image.Image:
    """Draw the images row by row, with the names and values of the axes."""
    width, height = images[0].size
    font = ImageFont.load_default(size=max(13, width // 14))
    line = int(font.getbbox("Ag")[3] * 1.3)
    rows = [_wrapped(_label(value), font) for value in y.values]
    widest = max(font.getlength(text) for row in (y.name, *rows) for text in row.split("\n"))
    left, top = MARGIN + int(widest) + 2 * GAP, MARGIN + 2 * line
    size = left + len(x.values) * (width + GAP) + MARGIN, top + len(y.values) * (height + GAP) + MARGIN
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((left, MARGIN), x.name, GRAY, font)
    pen.text((MARGIN, MARGIN + line), y.name, GRAY, font)
    for column, value in enumerate(x.values):
        pen.text((left + column * (width + GAP), MARGIN + line), fit(_label(value), font, width), BLUE, font)
    for row, text in enumerate(rows):
        pen.text((MARGIN, top + row * (height + GAP)), text, BLUE, font)
    for index, image in enumerate(images):
        row, column = divmod(index, len(x.values))
        sheet.paste(image, (left + column * (width + GAP), top + row * (height + GAP)))
    return sheet


def _label(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _wrapped(text: str, font: Any, lines: int = 4) -> str:
    """Break a text into lines of ``LABEL_WIDTH`` pixels, and shorten what does not fit into ``lines``."""
    rows = [""]
    for word in text.split():
        longer = f"{rows[-1]} {word}".strip()
        if font.getlength(longer) <= LABEL_WIDTH or not rows[-1] or len(rows) == lines:
            rows[-1] = longer
        else:
            rows.append(word)
    return "\n".join(fit(row, font, LABEL_WIDTH) for row in rows)
