"""The Compare tab's X/Y grids: one image per pair of values of two settings, from the same noise."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup
from PIL import Image

from app.inference_session import Preview
from app.web import quotas
from app.web.compare_plan import CompareValues, insert_placeholder
from app.web.context import AppContext
from app.web.drawing_queue import DrawingQueue, Turn
from app.web.events import HIDDEN, QUIET, clicked, named, progress_text, sender, user_errors, waiting_text
from app.web.html import date_of, render
from app.web.theme import CLICKS
from app.web.values import Line, Text, row
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.comparison.axes import AXES, BASE_CHECKPOINT, LAST_CHECKPOINT, GridPlan, draw_axes
from hra_diffusion.errors import UserError
from hra_diffusion.files import make_folder, next_numbered, remove
from hra_diffusion.generation.png import read_png, save_png
from hra_diffusion.generation.previews import OnStep
from hra_diffusion.generation.requests import Settings
from hra_diffusion.generation.schedulers import DEFAULT
from training.runs.lookup import checkpoint_file

SHOWN = 6
"""Grids that are shown, newest first."""
ONE_ROW = ("one row", "")


@dataclass
class AxesPart:
    """Components."""

    x: gr.Dropdown
    x_values: gr.Textbox
    y: gr.Dropdown
    y_values: gr.Textbox
    draw: gr.Button
    status: gr.HTML
    grids: gr.HTML

    @property
    def inputs(self) -> list[Any]:
        return [self.x, self.x_values, self.y, self.y_values]


def build() -> AxesPart:
    """Lay out the fields in an accordion."""
    hint = "Several values, separated by commas; prompts one per line. Checkpoints: steps, last, base or names."
    with gr.Accordion("X/Y grid: two settings against each other", open=False, elem_id="axes"):
        with gr.Row():
            x = gr.Dropdown(list(AXES), value="steps", label="Columns", min_width=120, elem_id="axes-x")
            x_values = gr.Textbox("10, 25", label="Values of the columns", info=hint, lines=2, max_length=4000,
                                  min_width=220, elem_id="axes-x-values")  # fmt: skip
        with gr.Row():
            y = gr.Dropdown([*AXES, ONE_ROW], value="guidance", label="Rows", min_width=120, elem_id="axes-y")
            y_values = gr.Textbox("2, 5", label="Values of the rows", lines=2, max_length=4000, min_width=220,
                                  elem_id="axes-y-values")  # fmt: skip
        gr.HTML('<p class="soft small">The rest is taken from above: the first adapter, prompt and seed.</p>')
        draw = gr.Button("Make the grid", variant="primary", elem_id="axes-button")
        status, grids = gr.HTML(), gr.HTML(js_on_load=CLICKS, elem_id="axes-grids")
    return AxesPart(x, x_values, y, y_values, draw, status, grids)


def make_plan(
    context: AppContext, x: Sequence[str], y: Sequence[str], values: Sequence[Any]
) -> tuple[GridPlan, dict[str, Path | None]]:
    """Return the grid and the file of each of its checkpoints, None for the base model. Raises UserError.

    Args:
        x, y: names of the axes and their values; an empty ``y`` gives one row.
        values: the values of the tab (see ``CompareValues``).
    """
    given = row(CompareValues, values)
    adapter = context.adapter_path(given.adapters[0]) if given.adapters else None
    prompt = next((line.strip() for line in given.prompts.splitlines() if line.strip()), "")
    fixed = {
        "checkpoint": LAST_CHECKPOINT if adapter else BASE_CHECKPOINT, "strength": given.strength, "guidance": None,
        "steps": given.steps or None, "scheduler": DEFAULT, "seed": given.seed or 0,
        "prompt": insert_placeholder(prompt, read_info(adapter)) if adapter else prompt,
    }  # fmt: skip
    plan = GridPlan.of(x, y, fixed, Settings())
    if not all(cell["prompt"] for cell in plan.cells):
        raise UserError("Write at least one prompt.")
    known = dict(context.adapter_choices())

    def find(name: str) -> Path:
        if name not in known:
            raise UserError(f"there is no adapter {name!r}; use its name as in the list of adapters")
        return context.adapter_path(known[name])

    return plan, {value: checkpoint_file(value, adapter, find) for value in plan.checkpoints}


def axis_values(name: str, text: str) -> list[str]:
    """Return the name of an axis and the values that a visitor has typed; nothing for one row."""
    parts = text.splitlines() if name == "prompt" else re.split(r"[,\n]", text)
    return [name, *(part.strip() for part in parts if part.strip())] if name else []


def run_grid(
    context: AppContext, plan: GridPlan, files: dict[str, Path | None], turn: Turn
) -> Iterator[Preview | Image.Image]:
    """Yield previews of the cells, then the grid."""
    session = context.session

    def run(on_step: OnStep) -> Image.Image:
        paths = list(dict.fromkeys(file for file in files.values() if file))
        names = dict(zip(paths, (info.name for info in session.load_adapters(paths)), strict=True))
        adapters = {value: names[file] if file else "" for value, file in files.items()}
        return draw_axes(session.pipe, plan, adapters, on_step=on_step)

    for update in session.watch(run, len(plan.cells), turn.cancelled):
        yield update if isinstance(update, Preview) else update.value


def show_grids(folder: Path) -> Markup:
    """Return a visitor's newest grids, with the names of their axes and their dates."""
    rows = []
    for file in _saved(folder)[:SHOWN]:
        try:
            saved = read_png(file)
        except UserError:
            continue
        axes = " × ".join(saved[key]["axis"] for key in ("x", "y") if key in saved)
        rows.append((file, axes, date_of(file)))
    return render("compare_axes", rows=rows)


def _saved(folder: Path) -> list[Path]:
    return sorted((folder / "grids").glob("[0-9]*.png"), reverse=True)


class Events:
    """Event handlers."""

    def __init__(self, context: AppContext, queue: DrawingQueue):
        self.context, self.queue = context, queue

    def show(self, request: gr.Request) -> Markup:
        return show_grids(self.context.visitor_folder(request))

    @user_errors
    def draw(
        self, request: gr.Request, x: Line, x_values: Text, y: Line, y_values: Text, *values: Any
    ) -> Iterator[tuple[Any, Any]]:
        """Yield updates of the status and of the grids."""
        context = self.context.for_visitor(request)
        quotas.require_space(context, request)
        plan, files = make_plan(context, axis_values(x, x_values), axis_values(y, y_values), values)
        cost = sum(self.context.cost(settings, 1) for settings in plan.cell_settings)
        with self.queue.place(sender(request), cost, f"compare {request.session_hash}") as turn:
            quotas.count_images(context, request, len(plan.cells))
            for ahead in itertools.chain(self.queue.wait(turn), [0]):
                text = waiting_text(self.context.session, ahead)
                yield render("compare_status", text=text, percent=None), gr.skip()
            for update in run_grid(context, plan, files, turn):
                if isinstance(update, Preview):
                    text = progress_text(self.context.session, f"Generating {len(plan.cells)} pictures …")
                    yield render("compare_status", text=text, percent=round(100 * update.progress)), gr.skip()
                    continue
                folder = self.context.visitor_folder(request)
                save_png(update, next_numbered(make_folder(folder / "grids"), ".png"))
                yield "", show_grids(folder)

    @user_errors
    def delete(self, event: gr.EventData, request: gr.Request) -> Markup:
        folder = self.context.visitor_folder(request)
        remove(named(_saved(folder), clicked(event)["file"], "grid"))
        return show_grids(folder)


def connect(context: AppContext, page: gr.Blocks, parts: AxesPart, inputs: list[Any], queue: DrawingQueue) -> None:
    """Connect the events. ``inputs``: the components of the tab that fix the other settings."""
    events = Events(context, queue)
    page.load(events.show, None, parts.grids, **QUIET)
    parts.draw.click(
        events.draw, [*parts.inputs, *inputs], [parts.status, parts.grids], preprocess=False, show_progress="hidden",
        concurrency_limit=None, trigger_mode="once", api_name="grid",
    )  # fmt: skip
    parts.grids.click(events.delete, None, parts.grids, **HIDDEN)
