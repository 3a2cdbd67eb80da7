"""The Compare tab's benchmarks: the chosen adapters' settings, trained again with several seeds and compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gradio as gr
from markupsafe import Markup
from pydantic import Field

from app.protocols import plan as plans
from app.protocols.cells import cells_of, missing_cells
from app.protocols.estimate import Estimate, estimate, pictures_of, stored
from app.protocols.plan import Plan
from app.protocols.subjects import Subject
from app.web import quotas
from app.web.benchmark_plan import make_plan
from app.web.benchmark_queue import ACTIVE
from app.web.context import AppContext
from app.web.events import HIDDEN, QUIET, changed, checked, clicked, named, say, user_errors
from app.web.html import date_of, note, render
from app.web.status_bar import StatusBar
from app.web.theme import CLICKS
from app.web.train_forecast import measurements
from app.web.values import Keys, Whole
from hra_diffusion import records
from hra_diffusion.comparison.intervals import Interval
from hra_diffusion.errors import UserError
from hra_diffusion.files import next_numbered, remove
from training.runs import calibration
from training.runs.queue import OVER

MIN_SEEDS, MAX_SEEDS = 2, 5
SHOWN = 6
"""Benchmarks that are shown, newest first."""
Seeds = Annotated[Whole, Field(ge=MIN_SEEDS, le=MAX_SEEDS)]


@dataclass(frozen=True)
class Results:
    """What the page shows of ``results.json``."""

    means: dict[str, dict[str, Interval]]
    winners: dict[str, str | None]


@dataclass
class BenchmarkPart:
    """Components. ``open``: whether the accordion is; ``seen``: digests of what was sent."""

    accordion: gr.Accordion
    seeds: gr.Slider
    forecast: gr.HTML
    start: gr.Button
    list: gr.HTML
    open: gr.State
    seen: gr.State


def build() -> BenchmarkPart:
    """Lay out the fields in an accordion."""
    with gr.Accordion("Benchmark these: train them again and measure", open=False, elem_id="benchmark") as accordion:
        gr.HTML(render("compare_benchmark"))
        seeds = gr.Slider(MIN_SEEDS, MAX_SEEDS, MIN_SEEDS, step=1, label="Training seeds", elem_id="benchmark-seeds",
                          info="More seeds give narrower intervals.")  # fmt: skip
        forecast = gr.HTML(elem_id="benchmark-forecast")
        start = gr.Button("Benchmark these", variant="primary", elem_id="benchmark-button")
        listed = gr.HTML(js_on_load=CLICKS, elem_id="benchmark-list")
    return BenchmarkPart(accordion, seeds, forecast, start, listed, gr.State(False), gr.State(("", "")))


def forecast(context: AppContext, keys: list[str], seeds: int) -> Markup:
    """Return what a benchmark of these adapters takes, as HTML. Starts to measure what was not measured yet."""
    if not keys:
        return render("hint", text="Choose the adapters above whose settings are to be compared.")
    try:
        plan = make_plan(context, keys, seeds)
    except UserError as error:
        return note(str(error), "bad")
    subjects = plan.load_subjects()
    expected = estimate(context.output / plan.name, plan, subjects, stored(context.output))
    return render(
        "benchmark_forecast", expected=str(expected), measuring=_measure(context, plan, subjects, expected),
        held_out=subjects["mine"].references[0].name,
    )  # fmt: skip


def _measure(context: AppContext, plan: Plan, subjects: Mapping[str, Subject], expected: Estimate) -> str:
    """Start to measure the first variant whose time is unknown; return what is said about it."""
    unknown = [name for name, reason in expected.unknown.items() if name in plan.variants and not reason]
    if not unknown:
        return ""
    if context.queue.busy():
        return "It can be measured once the current run has ended."
    calibration.start(context.output, plan.config(subjects["mine"], unknown[0], 0))
    return "Measuring it on this machine: a few real training steps, some seconds …"


def show_benchmarks(context: AppContext, visitor: Path) -> Markup:
    """Return the newest benchmarks of a visitor: how far they are, and their tables."""
    rows = [row for folder in context.benchmarks.folders(visitor)[:SHOWN] if (row := _row(context, folder))]
    return render("compare_benchmarks", rows=rows)


def _row(context: AppContext, folder: Path) -> dict[str, Any] | None:
    """Return what is shown of a benchmark; None without a plan."""
    if (plan := plans.read(folder)) is None:
        return None
    state, total = context.benchmarks.state(folder), sum(1 for _ in cells_of(plan))
    done, ends = total - len(missing_cells(plan, folder)), context.benchmarks.is_running(folder)
    active = state.status in ACTIVE
    results = records.read(folder / "results.json", Results, None)
    return {
        "folder": folder, "labels": [*plan.variants], "seeds": len(plan.seeds), "state": state, "done": done,
        "total": total, "active": active, "stopping": ends and not active, "goes_on": done < total and not ends,
        "date": date_of(folder / plans.PLAN_FILE), "results": results,
        "figures": list(dict.fromkeys(name for own in results.means.values() for name in own)) if results else [],
    }  # fmt: skip


def remove_benchmark(context: AppContext, folder: Path) -> None:
    """Delete a benchmark that is over, and the run that it has left unfinished. Raises UserError if it is not over."""
    if context.benchmarks.is_running(folder) or context.benchmarks.state(folder).status in ACTIVE:
        raise UserError("stop the benchmark first")
    if plan := plans.read(folder):
        unfinished = [job.run.name for job in context.jobs() if job.status in OVER]
        for name in unfinished:
            if name.startswith(f"{plan.name}-"):
                context.queue.discard(name)
    remove(folder)


class Events:
    """Event handlers."""

    def __init__(self, context: AppContext):
        self.context = context

    def _refresh(self, request: gr.Request, keys: list[str], seeds: int, is_open: bool, seen: Any) -> tuple[Any, ...]:
        """Return updates of the forecast, the list and ``seen``."""
        context = self.context.for_visitor(request)
        expected = forecast(context, keys, seeds) if is_open else Markup("")
        listed = show_benchmarks(context, self.context.visitor_folder(request))
        parts = (expected, listed)
        digests = tuple(changed(part, old) for part, old in zip(parts, seen, strict=True))
        updates = (part if digest else gr.skip() for part, digest in zip(parts, digests, strict=True))
        return *updates, tuple(new or old for new, old in zip(digests, seen, strict=True))

    @checked
    def refresh(self, keys: Keys, seeds: Seeds, is_open: Any, seen: Any, request: gr.Request) -> tuple[Any, ...]:
        return self._refresh(request, keys, seeds, is_open, seen)

    @checked
    def expand(self, keys: Keys, seeds: Seeds, request: gr.Request) -> tuple[Any, ...]:
        return True, *self._refresh(request, keys, seeds, True, ("", ""))

    def restore(self, request: gr.Request) -> tuple[Any, bool]:
        """Open the accordion if a benchmark of the visitor runs."""
        is_open = quotas.has_benchmark(self.context, self.context.visitor_folder(request))
        return gr.update(open=is_open), is_open

    @user_errors
    def start(self, keys: Keys, seeds: Seeds, request: gr.Request) -> Markup:
        context, visitor = self.context.for_visitor(request), self.context.visitor_folder(request)
        quotas.require_space(context, request)
        plan = make_plan(context, keys, seeds)
        quotas.require_no_benchmark(context, visitor)
        subjects = plan.load_subjects()
        quotas.count_images(context, request, sum(pictures_of(plan, subjects, cell) for cell in cells_of(plan)))
        folder = next_numbered(visitor / "benchmark")
        plans.store(plan, folder)
        context.benchmarks.add(folder, context.person.name)
        say("The benchmark is in the queue. It continues if you close this page.")
        return show_benchmarks(context, visitor)

    @user_errors
    def act(self, event: gr.EventData, request: gr.Request) -> Markup:
        context, visitor = self.context.for_visitor(request), self.context.visitor_folder(request)
        folder = named(context.benchmarks.folders(visitor), clicked(event)["file"], "benchmark")
        match clicked(event)["do"]:
            case "stop":
                context.benchmarks.stop(folder)
            case "resume":
                quotas.require_space(context, request)
                quotas.require_no_benchmark(context, visitor)
                context.benchmarks.resume(folder)
            case "delete":
                remove_benchmark(context, folder)
        return show_benchmarks(context, visitor)


def connect(
    context: AppContext, page: gr.Blocks, parts: BenchmarkPart, adapters: gr.Dropdown, status: StatusBar
) -> None:
    """Connect the events. ``adapters``: those that the visitor has chosen."""
    events, given = Events(context), [adapters, parts.seeds]
    refreshed: dict[str, Any] = {
        "fn": events.refresh, "inputs": [*given, parts.open, parts.seen],
        "outputs": [parts.forecast, parts.list, parts.seen],
    }  # fmt: skip
    context.pulse.sources["benchmark"] = lambda: followed(context)
    page.load(events.restore, None, [parts.accordion, parts.open], **QUIET).then(**refreshed, **QUIET)
    status.changes["benchmark"].click(**refreshed, **QUIET)
    gr.on([adapters.change, parts.seeds.input], **refreshed, **QUIET)
    parts.accordion.expand(events.expand, given, [parts.open, *refreshed["outputs"]], **QUIET)
    parts.accordion.collapse(lambda: False, None, parts.open, **QUIET)
    parts.start.click(events.start, given, parts.list, **HIDDEN)
    parts.list.click(events.act, None, parts.list, **HIDDEN)


def followed(context: AppContext) -> object:
    """Return what the benchmarks and their forecast depend on."""
    return context.benchmarks.changed, measurements(context)
