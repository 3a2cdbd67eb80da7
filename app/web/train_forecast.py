"""Time and memory of a training run, measured on this machine and shown before Start."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from app.web.context import AppContext
from app.web.form import Entry
from app.web.html import note, render
from app.web.train_config import FormValues, plan, preview_config
from hra_diffusion.errors import UserError
from training.config import TrainConfig
from training.presets import PRESETS
from training.runs import calibration, progress
from training.runs.progress import rough_duration
from training.runs.queue import Job

MAX_BEFORE = 20
"""Number of runs in the queue whose time is added up."""


def forecast(
    context: AppContext, entries: Sequence[Entry], photos: int, values: FormValues, measure: bool
) -> tuple[Any, str]:
    """Return the presets labelled with their minutes, and the time and memory of the planned runs as HTML.

    ``photos``: how many there are. ``measure``: start measuring a configuration that has no measurement yet.
    """
    try:
        runs = plan(context, entries, values) if not values.several or context.session.loaded else []
    except UserError as error:
        return gr.skip(), note(str(error), "bad")
    measured = [(config, calibration.load(context.output, config)) for config in runs]
    known = [(config, found) for config, found in measured if found]
    missing = [config for config, found in measured if not found]
    if missing or not runs:
        return gr.skip(), _not_measured(context, missing, measure)
    if error := next((found.error for _, found in known if found.error), ""):
        return gr.skip(), note(f"this can't run here: {error}", "bad")
    count = max(photos, 1)
    seconds = sum(found.seconds(config, count) for config, found in known)
    memory = max(found.memory for _, found in known)
    start = f"{len(known)} runs, about" if len(known) > 1 else "About"
    text = render(
        "train_forecast", runs=start, duration=rough_duration(seconds), memory=f"{memory / 2**30:.1f} GB",
        before=runs_before(context), gives_way=context.session.hold.gives_way_to(memory),
    )  # fmt: skip
    return gr.update(choices=_preset_choices(context, entries, count, values)), text


def runs_before(context: AppContext) -> str:
    """Return how many runs train or wait before a new one, and for how long as far as it is known; "" for none."""
    jobs = [job for job in context.queue.jobs(MAX_BEFORE) if job.status in ("running", "waiting")]
    seconds = [_seconds_left(context, job) for job in jobs]
    if not jobs:
        return ""
    count = "one run" if len(jobs) == 1 else f"{len(jobs)} runs"
    known = f", in about {rough_duration(sum(seconds))}" if all(seconds) else ""
    return f"It starts after {count} before it{known}."


def _seconds_left(context: AppContext, job: Job) -> float:
    """Return the predicted seconds until a run ends; 0 if they are unknown."""
    try:
        config = job.run.config
    except UserError:  # edited by hand
        return 0.0
    if job.status == "running" and (left := progress.read(job.run).seconds_left(config.sample_every)) is not None:
        return left
    found = calibration.load(context.output, config)
    return found.seconds(config, len(job.run.photo_records or ())) if found and not found.error else 0.0


def measurements(context: AppContext) -> object:
    """Return what forecasts depend on besides the form: the measurements, and whether a run keeps them waiting."""
    folder = calibration.measurements_folder(context.output)
    changed = folder.stat().st_mtime_ns if folder.is_dir() else 0
    runs = [(job.run.name, job.status) for job in context.queue.jobs(MAX_BEFORE)]
    measuring = calibration.in_progress(context.output)  # the next one starts when this one has ended
    return changed, measuring, runs, context.session.base, context.session.loaded


def _not_measured(context: AppContext, missing: Sequence[TrainConfig], measure: bool) -> str:
    if context.queue.busy():
        text = "Time and memory can be measured once the current run has ended."
    elif missing and measure:
        calibration.start(context.output, missing[0])
        text = "Measuring time and memory on this machine: a few real training steps, some seconds …"
    else:
        text = "Time and memory on this machine are measured once there are photos."
    return render("hint", text=text)


def _preset_choices(
    context: AppContext, entries: Sequence[Entry], photos: int, values: FormValues
) -> list[tuple[str, str]]:
    choices = []
    for preset in PRESETS:
        config = preview_config(context, entries, values._replace(preset=preset))
        found = calibration.load(context.output, config)
        time = f" · {rough_duration(found.seconds(config, photos))}" if found and not found.error else ""
        choices.append((preset.capitalize() + time, preset))
    return choices
