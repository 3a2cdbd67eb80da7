"""Compare tab: adapters and the base model from the same noise, side by side; blind votes; downloads."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gradio as gr
from markupsafe import Markup
from pydantic import Field

from app.inference_session import Cancelled, Preview
from app.web import compare_axes, compare_benchmark, quotas
from app.web.compare_axes import AxesPart
from app.web.compare_benchmark import BenchmarkPart
from app.web.compare_history import ALL_RUNS, runs, show_history, summaries
from app.web.compare_plan import Plan, make_plan, run_comparison
from app.web.compare_results import latest, overlay_images, save, saved, show_downloads, show_previews, show_saved
from app.web.compare_votes import record_vote, show_ballot
from app.web.context import AppContext
from app.web.drawing_queue import DrawingQueue, Turn
from app.web.events import HIDDEN, QUIET, checked, clicked, named, progress_text, sender, user_errors, waiting_text
from app.web.html import empty_state, note, render
from app.web.status_bar import StatusBar
from app.web.theme import CLICKS
from app.web.values import DEFAULT_INFO, Line, Whole
from hra_diffusion.comparison import report
from hra_diffusion.comparison.compare import Comparison
from hra_diffusion.comparison.storage import load_comparison
from hra_diffusion.errors import UserError
from hra_diffusion.files import next_numbered, remove

NO_PLOTS = "The plots need at least two variants, the training photos, and a CLIP model."
PROMPTS = "a photo of a {subject} in the snow\na photo of a {subject} on the beach"


@dataclass
class CompareTab:
    """Components of the tab. ``opened``: the number of the comparison that is shown, or "" for the latest one."""

    adapters: gr.Dropdown
    base: gr.Checkbox
    prompts: gr.Textbox
    seed: gr.Number
    seeds: gr.Slider
    strength: gr.Slider
    steps: gr.Slider
    run: gr.Button
    stop: gr.Button
    status: gr.HTML
    grid: gr.HTML
    tools: gr.Column
    left: gr.Dropdown
    right: gr.Dropdown
    row: gr.Dropdown
    overlay: gr.ImageSlider
    ballot: gr.HTML
    standings: gr.HTML
    plots: gr.HTML
    drift: gr.Checkbox
    files: gr.HTML
    benchmark: BenchmarkPart
    axes: AxesPart
    history: gr.HTML
    earlier: gr.Accordion
    history_run: gr.Dropdown
    opened: gr.State

    @property
    def shown(self) -> list[Any]:
        """Components that a comparison fills in."""
        return [self.grid, self.tools, self.row, self.left, self.right, self.overlay, self.plots, self.files,
                self.ballot, self.standings]  # fmt: skip

    @property
    def inputs(self) -> list[Any]:
        """Everything that determines a comparison."""
        return [self.adapters, self.base, self.prompts, self.seed, self.seeds, self.strength, self.steps, self.drift]


def build(context: AppContext) -> CompareTab:
    """Lay out the tab."""
    parts: dict[str, Any] = {}
    with gr.Row(equal_height=True):
        with gr.Column(scale=5, min_width=300):
            parts["adapters"] = gr.Dropdown([], multiselect=True, label="Adapters",
                                            info="One column each.", elem_id="compare-adapters")  # fmt: skip
            parts["base"] = gr.Checkbox(True, label="Include the base model as the first column")
        with gr.Column(scale=5, min_width=300):
            parts["prompts"] = gr.Textbox(PROMPTS, lines=3, label="Prompts, one per line", max_length=2000,
                                          info="{subject} stands for each adapter’s subject.")  # fmt: skip
    with gr.Row():
        parts["seeds"] = gr.Slider(1, 6, 2, step=1, label="Seeds per prompt", min_width=140)
        parts["seed"] = gr.Number(0, precision=0, minimum=0, label="First seed", min_width=100)
        parts["strength"] = gr.Slider(0, 1.5, 1, step=0.05, label="Strength", min_width=140)
        parts["steps"] = gr.Number(None, precision=0, label="Steps", info=DEFAULT_INFO, min_width=140)
    parts["drift"] = gr.Checkbox(
        False,
        label="Also measure what else has changed (drift)",
        info="Generates one more picture per prompt and adapter: of the class, without the trigger word.",
    )
    with gr.Row():
        parts["run"] = gr.Button("Compare", variant="primary", size="lg", scale=3, elem_id="compare-button")
        parts["stop"] = gr.Button("Stop", size="lg", scale=1, min_width=70)
    parts["status"] = gr.HTML()
    parts["grid"] = gr.HTML(elem_id="grid")
    parts |= _tools()
    parts["benchmark"] = compare_benchmark.build()
    parts["axes"] = compare_axes.build()
    with gr.Accordion("Earlier comparisons", open=False, elem_id="history") as parts["earlier"]:
        parts["history_run"] = gr.Dropdown([("all", ALL_RUNS)], value=ALL_RUNS, label="Run or adapter", min_width=160)
        parts["history"] = gr.HTML(js_on_load=CLICKS)
    parts["opened"] = gr.State("")
    return CompareTab(**parts)


def _tools() -> dict[str, Any]:
    with gr.Column(visible=False) as tools:
        with gr.Accordion("Overlay two pictures", open=False):
            with gr.Row():
                row = gr.Dropdown([], label="Row", min_width=140)
                left = gr.Dropdown([], label="Left", min_width=120)
                right = gr.Dropdown([], label="Right", min_width=120)
            overlay = gr.ImageSlider(
                label="Overlay", show_label=False, height=420, interactive=False, elem_id="overlay"
            )
        with gr.Accordion("Blind vote", open=False):
            ballot, standings = gr.HTML(js_on_load=CLICKS, elem_id="ballot"), gr.HTML()
        with gr.Accordion("Similarity against cost", open=False, elem_id="plots"):
            plots = gr.HTML()
        with gr.Accordion("Download", open=False):
            files = gr.HTML()
    return {"plots": plots, "tools": tools, "row": row, "left": left, "right": right, "overlay": overlay,
            "ballot": ballot, "standings": standings, "files": files}  # fmt: skip


class Events:
    """Event handlers of the tab."""

    def __init__(self, context: AppContext, parts: CompareTab, queue: DrawingQueue):
        self.context, self.parts, self.queue = context, parts, queue

    def choices(self, request: gr.Request) -> Any:
        return gr.update(choices=self.context.for_visitor(request).adapter_choices())

    def show(self, folder: Path, comparison: Comparison) -> tuple[Any, ...]:
        """Return updates of ``shown`` for a saved comparison."""
        labels = [variant.label for variant in comparison.variants]
        rows = [
            f"{prompt.replace('{subject}', '…')} · seed {seed}"
            for prompt, seed in itertools.product(comparison.prompts, comparison.seeds)
        ]
        pair = (labels[0], labels[-1])
        return (
            show_saved(folder, comparison), gr.update(visible=True),
            gr.update(choices=list(zip(rows, range(len(rows)), strict=True)), value=0),
            *(gr.update(choices=labels, value=label) for label in pair),
            overlay_images(folder, comparison, 0, *pair), report.plots(comparison) or note(NO_PLOTS, "plain"),
            show_downloads(folder), *show_ballot(folder, comparison),
        )  # fmt: skip

    def show_message(self, message: Markup) -> tuple[Any, ...]:
        """Return updates of ``shown`` that show a message in place of the grid."""
        return message, *[gr.skip()] * (len(self.parts.shown) - 1)

    @user_errors
    def run(self, request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Yield updates of the status and ``shown``: previews, then the saved comparison."""
        context = self.context.for_visitor(request)
        quotas.require_space(context, request)
        plan = make_plan(context, values)
        cost, name = self.context.cost(plan.settings, plan.image_count), f"compare {request.session_hash}"
        with self.queue.place(sender(request), cost, name) as turn:
            try:
                quotas.count_images(context, request, plan.image_count)
                yield from self._run(request, plan, turn)
            except UserError as error:
                stopped = isinstance(error, Cancelled)
                message = note("Stopped.", "plain") if stopped else note(str(error), "bad")
                yield message, *self.restore(request)

    def _run(self, request: gr.Request, plan: Plan, turn: Turn) -> Iterator[tuple[Any, ...]]:
        unchanged = [gr.skip()] * (len(self.parts.shown) - 2)
        for ahead in itertools.chain(self.queue.wait(turn), [0]):
            text = waiting_text(self.context.session, ahead)
            yield render("compare_status", text=text, percent=None), gr.skip(), gr.skip(), *unchanged
        start = time.monotonic()
        status = render("compare_status", text=f"{plan.sample_count} pictures to generate …", percent=0)
        yield status, show_previews(plan, {}), gr.update(visible=False), *unchanged
        for update in run_comparison(self.context, plan, turn.cancelled):
            if isinstance(update, Preview):
                yield self.progress(update, start), show_previews(plan, update.images), gr.skip(), *unchanged
                continue
            folder = next_numbered(self.context.visitor_folder(request) / "compare")
            save(update, folder)
            yield self.done_text(update), *self.show(folder, update)

    def progress(self, preview: Preview, start: float) -> Markup:
        """Return the status of a comparison in progress, with the estimated time left."""
        left = (time.monotonic() - start) * (1 - preview.progress) / max(preview.progress, 0.01)
        text = progress_text(self.context.session, f"Generating … about {left:.0f} s left")
        return render("compare_status", text=text, percent=round(100 * preview.progress))

    def done_text(self, comparison: Comparison) -> Markup:
        count, seconds = len(comparison.samples), comparison.seconds
        text = f"{count} pictures in {seconds:.0f} s; each row starts from the same noise."
        return render("compare_done", text=text, warning=self.context.session.unscored)

    def stop(self, request: gr.Request) -> Any:
        return note("Stopping …", "plain") if self.queue.cancel(f"compare {request.session_hash}") else gr.skip()

    def current(self, request: gr.Request, opened: str = "") -> tuple[Path, Comparison]:
        """Return the visitor's comparison of this number, by default the latest. Raises UserError if there is none."""
        folder = self.context.visitor_folder(request)
        if (found := named(saved(folder), opened, "comparison") if opened else latest(folder)) is None:
            raise UserError("there is no comparison yet")
        return found, load_comparison(found)

    def restore(self, request: gr.Request) -> tuple[Any, ...]:
        """Return updates of ``shown`` for the visitor's latest comparison."""
        if latest(self.context.visitor_folder(request)) is None:
            text = "Choose adapters above. Every row is generated from the same noise, beside your photos."
            return self.show_message(empty_state("No comparison yet", text, "demo"))
        try:
            return self.show(*self.current(request))
        except UserError as error:
            return self.show_message(note(str(error), "bad"))

    @checked
    def list_history(self, request: gr.Request, run: Line) -> tuple[Markup, Any]:
        """Return updates of the history and of the choice of a run."""
        found = summaries(self.context.visitor_folder(request))
        choices = [("all", ALL_RUNS), *((name, name) for name in runs(found))]
        run = run if (run, run) in choices else ALL_RUNS
        return show_history(found, run), gr.update(choices=choices, value=run)

    @checked
    def filter_history(self, run: Line, request: gr.Request) -> Markup:
        return show_history(summaries(self.context.visitor_folder(request)), run)

    @user_errors
    def turn_page(self, event: gr.EventData, run: Line, request: gr.Request) -> Markup:
        return show_history(summaries(self.context.visitor_folder(request)), run, clicked(event)["at"])

    @user_errors
    def open_or_delete(self, event: gr.EventData, opened: str, run: Line, request: gr.Request) -> tuple[Any, ...]:
        """Return updates of ``shown``, of the comparison that is shown, and of the history."""
        folder, data = self.context.visitor_folder(request), clicked(event)
        chosen = named(saved(folder), data["file"], "comparison")
        if data["do"] == "open":
            return *self.show(chosen, load_comparison(chosen)), chosen.name, gr.skip()
        remove(chosen)
        shown = self.restore(request) if opened in ("", chosen.name) else [gr.skip()] * len(self.parts.shown)
        return *shown, "" if opened == chosen.name else opened, show_history(summaries(folder), run)

    @user_errors
    def overlay(
        self, row: Annotated[Whole, Field(ge=0)], left: Line, right: Line, opened: str, request: gr.Request
    ) -> Any:
        return overlay_images(*self.current(request, opened), row, left, right)

    @user_errors
    def vote(self, opened: str, event: gr.EventData, request: gr.Request) -> tuple[Markup, Markup]:
        folder, comparison = self.current(request, opened)
        data = clicked(event)
        if data["of"] != folder.name:
            raise UserError("there is a newer comparison, perhaps from another tab; reload the page to vote on it")
        record_vote(folder, comparison, data["at"], data["do"], data.get("cell"))
        return show_ballot(folder, comparison)


def connect(
    context: AppContext, page: gr.Blocks, tab: gr.Tab, parts: CompareTab, queue: DrawingQueue, status: StatusBar
) -> None:
    """Connect the events."""
    events, shown = Events(context, parts, queue), parts.shown
    history = events.list_history, parts.history_run, [parts.history, parts.history_run]
    parts.run.click(
        events.run, parts.inputs, [parts.status, *shown], preprocess=False, show_progress="hidden",
        concurrency_limit=None, trigger_mode="once", api_name="compare",
    ).then(lambda: "", None, parts.opened, **QUIET).then(*history, **QUIET)  # fmt: skip
    parts.stop.click(events.stop, None, parts.status, **QUIET)
    page.load(events.restore, None, shown, **QUIET)
    gr.on([page.load, tab.select], events.choices, None, parts.adapters, **QUIET)
    pair = [parts.row, parts.left, parts.right]
    gr.on([part.input for part in pair], events.overlay, [*pair, parts.opened], parts.overlay, **HIDDEN)
    parts.ballot.click(events.vote, parts.opened, [parts.ballot, parts.standings], **HIDDEN)
    parts.earlier.expand(*history, **QUIET)
    parts.history_run.input(events.filter_history, parts.history_run, parts.history, **QUIET)
    parts.history.select(events.turn_page, parts.history_run, parts.history, **HIDDEN)
    parts.history.click(events.open_or_delete, [parts.opened, parts.history_run],
                        [*shown, parts.opened, parts.history], **HIDDEN)  # fmt: skip
    compare_benchmark.connect(context, page, parts.benchmark, parts.adapters, status)
    compare_axes.connect(context, page, parts.axes, parts.inputs, queue)
