"""The status bar at the top of every tab: the run in progress, the queue, the base model and the device."""

import time
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any

import gradio as gr
from markupsafe import Markup

from app.inference_session import InferenceSession
from app.web.context import AppContext
from app.web.events import HIDDEN, QUIET, changed, clicked, say, user_errors
from app.web.html import render
from app.web.run_list import act_on_run, is_training, progress_text, show_runs
from app.web.theme import CLICKS
from app.web.values import Line
from hra_diffusion.errors import UserError
from hra_diffusion.models import devices
from training.runs import catalog, progress
from training.runs.owners import LOCAL, Person
from training.runs.queue import Job
from training.runs.state import log_size

Seen = tuple[str, str, str]
"""What a visitor has been sent: the digest of the runs, the base model and the device."""
DEVICES = {"cuda": "CUDA GPU", "mps": "Apple GPU", "cpu": "CPU"}
MAX_RUNS = 12
"""Number of runs in the list."""


@dataclass
class StatusBar:
    """Components of the status bar.

    ``changes`` holds hidden buttons that the browser presses when "runs", "forecast", "download" or "benchmark" has
    changed (see ``app.web.pulse``).
    """

    line: gr.HTML
    base: gr.Dropdown
    device: gr.Dropdown
    runs: gr.HTML
    changes: dict[str, gr.Button]
    seen: gr.State


def build(context: AppContext) -> StatusBar:
    """Lay out the status bar."""
    with gr.Row(elem_id="top"):
        gr.HTML('<span id="brand">hra<i>·</i>diffusion</span>', min_width=130, scale=0)
        line = gr.HTML(js_on_load=CLICKS, scale=5, min_width=280)
        base = gr.Dropdown(
            [(base_name(name), name) for name in context.bases], value=context.bases[0], show_label=False,
            container=False, label="Base model", scale=1, min_width=150, interactive=len(context.bases) > 1,
            elem_id="base",
        )  # fmt: skip
        choices = [(DEVICES[name], name) for name in devices.available()]
        device = gr.Dropdown(
            choices, value=devices.device_for(context.session.device), show_label=False, container=False,
            label="Device", scale=1, min_width=100, interactive=len(choices) > 1, elem_id="device",
        )  # fmt: skip
    with gr.Accordion("Runs", open=False, elem_id="runs"):
        runs = gr.HTML(js_on_load=CLICKS)
    changes = {
        name: gr.Button("Refresh", elem_id=f"pulse-{name}", elem_classes="pulse")
        for name in ("runs", "forecast", "download", "benchmark")
    }
    return StatusBar(line, base, device, runs, changes, gr.State())


def connect(context: AppContext, page: gr.Blocks, status: StatusBar) -> None:
    """Connect the events. ``run_view`` handles the runs' Show buttons."""

    def watch(seen: Seen | None, request: gr.Request) -> tuple[Any, ...]:
        return refresh(context.for_visitor(request), seen)

    @user_errors
    def act(event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        if clicked(event)["do"] != "show":  # run_view's
            act_on_run(context.for_visitor(request), clicked(event)["do"], clicked(event)["run"])
        if clicked(event)["do"] == "delete":
            say(f"{clicked(event)['run']} is now in the bin, at the bottom of the Library tab.")
        return refresh(context.for_visitor(request), None)

    @user_errors
    def change(base: Line, device: Line, request: gr.Request) -> None:
        require_may_configure(context.for_visitor(request))
        if base not in context.bases or device not in devices.available():
            raise UserError("this base model or device is not offered here; reload the page")
        context.session.change(base, device)

    selection = [status.base, status.device]
    outputs = [status.line, status.runs, *selection, status.seen]
    page.load(watch, status.seen, outputs, **QUIET)
    status.changes["runs"].click(watch, status.seen, outputs, **QUIET)
    context.pulse.sources["runs"] = lambda: followed(context)
    for part in selection:
        part.input(change, selection, None, **HIDDEN)
    for part in (status.line, status.runs):
        part.click(act, None, outputs, **HIDDEN)


def followed(context: AppContext) -> object:
    """Return what the status bar and the view of a run depend on."""
    session, queue = context.session, context.queue
    catalog.scan_runs(queue.index)
    training = [(name, log_size(context.output / name)) for name in queue.training()]
    minute = time.time() // 60 if training else 0  # a run that has been silent for long is marked
    return queue.index.revision(), training, minute, session.base, session.device, sharing(session)


def refresh(context: AppContext, seen: Seen | None) -> tuple[Any, ...]:
    """Return updates of all components that differ from ``seen``. Other visitors may change the base and the device."""
    jobs, session, waiting = context.jobs(MAX_RUNS), context.session, context.queue.count("waiting")
    first = jobs[:1] if context.person.is_admin else [*jobs[:1], *context.queue.jobs(1)]
    running = next((job for job in first if job.status == "running"), None)
    line = show_status(running, jobs, waiting, sharing(session), context.person)
    runs = show_runs(jobs, context.person)
    selection = session.base, devices.device_for(session.device)
    digest, *selected = seen or ("", "", "")
    new_digest = changed([line, runs], digest)
    if not new_digest and selection == tuple(selected):
        return (gr.skip(),) * 5
    updates = (gr.skip() if new == old else gr.update(value=new) for new, old in zip(selection, selected, strict=True))
    base, device = updates
    if base != gr.skip():  # it may have been chosen after the page was built
        known = dict.fromkeys([*context.bases, session.base])  # one that is being loaded is not among them yet
        choices = [(base_name(name), name) for name in known]
        base |= {"choices": choices, "interactive": len(choices) > 1 and context.may_configure}
    if device != gr.skip():
        device |= {"interactive": len(devices.available()) > 1 and context.may_configure}
    return line, runs, base, device, (new_digest or digest, *selection)


def require_may_configure(context: AppContext) -> None:
    """Raise UserError if the visitor may not change the base model and the device of all."""
    if not context.may_configure:
        raise UserError("everyone uses the same base model and device; only an admin can change them")


def base_name(base: str) -> str:
    """Return a base model's name without its path."""
    return PureWindowsPath(base).name.removesuffix(".safetensors")  # accepts both kinds of slashes


def sharing(session: InferenceSession) -> str:
    """Return how images and runs share the device at present; "" if only one of them uses it."""
    if session.gave_way:
        return "The base model is unloaded while a run needs its memory."
    return "Pictures share the device." if session.hold.neighbours() else ""


def show_status(
    running: Job | None, jobs: list[Job], waiting: int, sharing: str, person: Person = LOCAL
) -> Markup:  # fmt: skip
    """Return one line about the run in progress or an interrupted one.

    Args:
        running: the run in progress. Its name is shown to those who may see it.
        jobs: the first runs of the queue that the person may see.
        waiting: number of waiting runs.
        sharing: how images and runs share the device.
    """
    if running is None:
        died = next((job for job in jobs if job.status == "died" and person.may_change(job.owner)), None)
        return render("status_bar", running=None, died=died)
    state = progress.read(running.run)
    return render(
        "status_bar",
        running=running,
        name=running.run.name if person.may_see(running.owner) else "",
        stoppable=person.may_change(running.owner),
        progress=progress_text(running, state),
        percent=round(100 * state.step / max(1, running.steps)),
        waiting=waiting,
        sharing=sharing,
        announce=not is_training(state),  # screen readers announce a new phase, not every step
    )
