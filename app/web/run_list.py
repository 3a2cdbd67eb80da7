"""The list of runs below the status bar: their status, and what can be done with each."""

import contextlib

from markupsafe import Markup

from app.web import quotas
from app.web.context import AppContext
from app.web.html import render
from hra_diffusion.errors import UserError
from training.runs import owners, progress
from training.runs.event_text import PHASES
from training.runs.owners import LOCAL, Person
from training.runs.queue import Job

LABELS = {"waiting": "waiting", "died": "interrupted", "finished": "ready"}
"""How the page calls a status, where it does not use the status's own name."""
CONFIRM = {"drop-states": "Really? It can’t go on then"}
"""What a button shows before a second click carries out its action."""
BADGE_KINDS = {"failed": "bad", "died": "warn", "finished": "ok"}


def label(job: Job) -> str:
    """Return the status of a run as the page shows it."""
    return LABELS.get(job.status, job.status)


def show_runs(jobs: list[Job], person: Person = LOCAL) -> Markup:
    """Return the runs with the buttons for a person. Admins see whose they are."""
    rows = [
        {
            "job": job,
            "label": label(job),
            "kind": BADGE_KINDS.get(job.status, ""),
            "actions": _actions(job) if person.may_change(job.owner) else [],
            "owner": _of(job.owner.owner) if person.is_admin and job.owner.owner != person.name else "",
            "shared": job.owner.shared,
        }
        for job in jobs
    ]
    return render("run_list", rows=rows, confirm=CONFIRM)


def _of(owner: str) -> str:
    return "of a visitor" if owner.startswith("#") else f"of {owner}" if owner else "of this machine"


def _actions(job: Job) -> list[tuple[str, str]]:
    """Return (text, action) of a run's buttons."""
    if job.status == "waiting":
        return [("Earlier", "earlier"), ("Cancel", "cancel")] if job.place else [("Cancel", "cancel")]
    if job.status == "running":
        return [("Stop", "stop")]
    if job.status == "finished":
        return [("Delete its training state", "drop-states")] if job.run.states() else []
    resume = [("Resume", "resume")] if job.step < job.steps else []
    return [*resume, ("Move to the bin", "delete")]


def act_on_run(context: AppContext, action: str, name: str) -> None:
    """Carry out an action from the list of runs. Raises RunError, also for a run of somebody else."""
    queue = context.queue
    place = context.own_job(name).place or 0
    match action:
        case "stop":
            queue.stop(name)
        case "resume":
            with queue.index.writing():
                quotas.require_turns(context)
                queue.resume(name)
            queue.start()
        case "cancel":
            queue.cancel(name)
        case "drop-states":
            queue.drop_states(name)
        case "delete":
            queue.discard(name)
        case "earlier":
            if place and not context.person.may_change(owners.read(context.output / queue.waiting()[place - 1])):
                raise UserError("the run before it belongs to somebody else")
            queue.move(name, place - 1)


def progress_text(job: Job, state: progress.Progress) -> str:
    """Return the phase of a run in progress, or its step and the time left."""
    if users := job.waits_for:
        return f"waiting for the memory that {users} uses …"
    if not is_training(state):
        return f"{PHASES.get(state.phase, 'starting')} …"
    time_left = ""
    with contextlib.suppress(UserError):  # a damaged configuration
        if (seconds := state.seconds_left(job.run.config.sample_every)) is not None:
            time_left = f" · {progress.format_duration(seconds)} left"
    return f"step {state.step} of {job.steps}{time_left}"


def is_training(state: progress.Progress) -> bool:
    """Return whether optimiser steps have begun."""
    return state.step > 0 and state.phase in ("train", "validation", "samples")
