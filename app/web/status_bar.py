"""The strip on top: the run in progress, the queue, the base model and the device; on every tab."""

import contextlib
from dataclasses import dataclass
from html import escape
from pathlib import PureWindowsPath
from typing import Any

import gradio as gr

from app.web.context import HIDDEN, QUIET, AppContext, changed, clicked, user_errors
from app.web.html import badge, bar, button
from app.web.theme import CLICKS
from hra_diffusion.errors import UserError
from hra_diffusion.models import devices
from training.runs import progress
from training.runs.queue import OVER, Job

Seen = tuple[str, str, str]
"""What a visitor has been shown: the runs' signature, the base and the device."""
DEVICES = {"cuda": "CUDA GPU", "mps": "Apple GPU", "cpu": "CPU"}
SHOWN = 12
"""Runs that the list shows."""
WORDS = {"waiting": "waits", "died": "broke off", "stopped": "stopped", "failed": "failed", "finished": "ready"}


@dataclass
class StatusBar:
    """The strip's components; ``timer`` also drives what else watches the runs."""

    line: gr.HTML
    base: gr.Dropdown
    device: gr.Dropdown
    runs: gr.HTML
    timer: gr.Timer
    seen: gr.State


def build(context: AppContext) -> StatusBar:
    """Lay the strip out."""
    with gr.Row(elem_id="top"):
        gr.HTML('<span id="brand">hra<i>·</i>diffusion</span>', min_width=130, scale=0)
        line = gr.HTML(js_on_load=CLICKS, scale=5, min_width=280)
        base = gr.Dropdown(
            [(base_name(name), name) for name in context.bases], value=context.bases[0], show_label=False,
            container=False, label="Base model", scale=1, min_width=150, interactive=len(context.bases) > 1,
            elem_id="base",
        )  # fmt: skip
        choices = [(DEVICES[name], name) for name in devices.devices()]
        device = gr.Dropdown(
            choices, value=devices.device_for(context.session.device), show_label=False, container=False,
            label="Device", scale=1, min_width=100, interactive=len(choices) > 1, elem_id="device",
        )  # fmt: skip
    with gr.Accordion("Runs", open=False, elem_id="runs"):
        runs = gr.HTML(js_on_load=CLICKS)
    return StatusBar(line, base, device, runs, gr.Timer(1.5), gr.State())


def connect(context: AppContext, page: gr.Blocks, status: StatusBar, training: Any) -> None:
    """Wire the strip; a click on a run's name shows it on the Teach tab."""

    def watch(seen: Seen | None) -> tuple[Any, ...]:
        return look(context, seen)

    @user_errors
    def act(event: gr.EventData) -> tuple[Any, ...]:
        do(context, clicked(event)["do"], clicked(event)["run"])
        if clicked(event)["do"] == "delete":
            gr.Info(f"{clicked(event)['run']} is in the bin, at the foot of the Library.")
        return look(context, None)

    @user_errors
    def change(base: str, device: str) -> None:
        context.session.change(base, device)

    held = [status.base, status.device]
    outputs = [status.line, status.runs, *held, status.seen]
    page.load(watch, status.seen, outputs, **QUIET)
    status.timer.tick(watch, status.seen, outputs, **QUIET)
    for part in held:
        part.input(change, held, None, **HIDDEN)
    for part in (status.line, status.runs):
        part.click(act, None, outputs, **HIDDEN)


def look(context: AppContext, seen: Seen | None) -> tuple[Any, ...]:
    """The line, the list of runs, the base and the device (any visitor may change them), if ``seen`` is out of date."""
    jobs, session = context.queue.jobs(), context.session
    line, table = running_line(context, jobs), runs_table(jobs[:SHOWN])
    held = session.base, devices.device_for(session.device)
    before, *chosen = seen or ("", "", "")
    now = changed([line, table], before)
    if not now and held == tuple(chosen):
        return (gr.skip(),) * 5
    base, device = (gr.skip() if new == old else gr.update(value=new) for new, old in zip(held, chosen, strict=True))
    if base != gr.skip():  # it may have been chosen since the page was built
        base |= {"choices": [(base_name(name), name) for name in context.bases], "interactive": len(context.bases) > 1}
    return line, table, base, device, (now or before, *held)


def do(context: AppContext, what: str, name: str) -> None:
    """What a button in the list of runs asks for. Raises RunError."""
    queue = context.queue
    match what:
        case "stop":
            queue.stop(name)
        case "resume":
            queue.resume(name)
            queue.start()
        case "cancel":
            queue.cancel(name)
        case "delete":
            queue.discard(name)
        case "earlier":
            queue.move(name, (queue.job(name).place or 0) - 1)


def base_name(base: str) -> str:
    """A base model's name without its path."""
    return PureWindowsPath(base).name.removesuffix(".safetensors")  # it knows both kinds of slashes


def running_line(context: AppContext, jobs: list[Job]) -> str:
    """What is going on, in a line."""
    running = next((job for job in jobs if job.status == "running"), None)
    if running is None:
        dead = next((job for job in jobs if job.status == "died"), None)
        if dead is None:
            return '<div class="status-bar soft">No run in progress.</div>'
        text = f"{escape(dead.run.name)} broke off at step {dead.step} of {dead.steps} (a crash or a power cut)."
        resume = button("Resume", "resume", run=dead.run.name)
        return f'<div class="status-bar">{badge("broke off", "warn")} {text} {resume}</div>'
    told = progress.read(running.run)
    waiting = sum(job.status == "waiting" for job in jobs)
    announced = "" if _stepping(told) else ' role="status"'  # read out: a new phase, not every step
    more = f' <span class="soft">{waiting} more in the queue</span>' if waiting else ""
    return (
        f'<div class="status-bar"><strong>{escape(running.run.name)}</strong> '
        f"<span{announced}>{standing(running, told)}</span>"
        f"{bar(told.step / max(1, running.steps), f'{running.run.name} learning')}"
        f"{more} {button('Stop', 'stop', run=running.run.name)}</div>"
    )


def standing(job: Job, told: progress.Progress) -> str:
    """How far a running run is: its phase, or its step and the time left."""
    if not _stepping(told):
        return f"{progress.PHASES.get(told.phase, 'starting')} …"
    rest = ""
    with contextlib.suppress(UserError):  # a damaged configuration
        if (left := told.seconds_left(job.run.config.sample_every)) is not None:
            rest = f" · {progress.duration(left)} left"
    return f"step {told.step} of {job.steps}{rest}"


def _stepping(told: progress.Progress) -> bool:
    return told.step > 0 and told.phase in ("train", "samples")


def runs_table(jobs: list[Job]) -> str:
    """The runs with what can be done about each."""
    if not jobs:
        text = "Runs appear here. They go on when you close this page, and are here when you come back."
        return f'<p class="soft">{text}</p>'
    return f'<div class="queue">{"".join(map(_run, jobs))}</div>'


def _run(job: Job) -> str:
    name, actions = job.run.name, []
    if job.status == "waiting":
        actions += [button("Earlier", "earlier", run=name)] if job.place else []
        actions.append(button("Cancel", "cancel", run=name))
    if job.status == "running":
        actions.append(button("Stop", "stop", run=name))
    if job.status in OVER and job.step < job.steps:
        actions.append(button("Resume", "resume", run=name))
    if job.status in OVER:
        actions.append(button("To the bin", "delete", run=name))
    kind = {"failed": "bad", "died": "warn", "finished": "ok"}.get(job.status, "")
    far = "" if job.status == "finished" else f' <span class="soft small">{job.step} of {job.steps}</span>'
    return (
        f'<div><span class="grow"><strong>{escape(name)}</strong> {badge(WORDS.get(job.status, job.status), kind)}{far}'
        f"</span>{button('Show', 'show', run=name)}{''.join(actions)}</div>"
    )
