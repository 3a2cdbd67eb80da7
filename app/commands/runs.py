"""hra-diffusion runs: list the training runs of an output folder; stop, resume or queue them."""

import argparse
from pathlib import Path

from app.commands.common import OUTPUTS, add_base, print_result
from hra_diffusion.errors import UserError
from training.runs.queue import Job, Queue


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=OUTPUTS, metavar="DIR", help="folder of the runs")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--stop", metavar="NAME", help="stop a run after its current step; it can be resumed")
    actions.add_argument("--resume", metavar="NAME", help="put a run that ended early back into the queue")
    actions.add_argument("--drop-states", metavar="NAME", help="delete the training state of a finished run, which "
                         "can't go on then; its adapters stay")  # fmt: skip
    actions.add_argument("--cancel", metavar="NAME", help="take a waiting run out of the queue")
    parser.add_argument("--steps", type=int, metavar="N", help="with --resume: let a finished run go on to N steps")
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    queue = Queue(arguments.output)
    if arguments.steps and not arguments.resume:
        raise UserError("--steps belongs to --resume NAME")
    if arguments.stop:
        queue.stop(arguments.stop)
    if arguments.resume:
        queue.resume(arguments.resume, arguments.steps)
    if arguments.drop_states:
        queue.drop_states(arguments.drop_states)
    if arguments.cancel:
        queue.cancel(arguments.cancel)
    queue.start()  # also replaces a worker that was killed
    jobs = queue.jobs()
    text = "\n".join(map(line, jobs)) or f"no runs in {arguments.output}"
    print_result(arguments, text, {"runs": [facts(job) for job in jobs]})


def line(job: Job) -> str:
    """Format a run as one line."""
    status = f"{job.status} {job.place + 1}" if job.place is not None else job.status
    return f"{job.run.name:24} {status:10} step {job.step} of {job.steps}  {job.reason}".rstrip()


def facts(job: Job) -> dict:
    """Return a run as JSON values."""
    return {"name": job.run.name, "status": job.status, "step": job.step, "steps": job.steps, "reason": job.reason,
            "place": job.place}  # fmt: skip
