"""State of a run: the file state.json in its folder, and the requests of other processes to the one that trains it."""

import contextlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hra_diffusion import records
from hra_diffusion.files import remove, write_text
from training.runs import owners
from training.runs.index import Index

FILE = "state.json"
LOG = "events.jsonl"
"""File in a run's folder with its events."""
MAX_RESTARTS = 3
"""How often an interrupted run is continued without a new checkpoint in between: it may be what ends the machine."""
Request = Literal["stop", "sample-now"]


class RunState(BaseModel):
    """State of a run.

    Attributes:
        status: "running" also stands in the file of a run whose process has died.
        step, steps: optimiser steps done, and in all.
        reason: why it failed.
        seconds: of each phase, once it has finished.
        queued: place among the waiting runs, lowest first; None for a run outside the queue.
        device: device asked for, such as "cuda:1"; "" for any.
        restarts: how often it was continued after an interruption, without a new checkpoint in between.
        stop_requested: whether a person stopped it, and not the end of its process, as when the machine shuts down.
    """

    model_config = ConfigDict(frozen=True)

    status: Literal["waiting", "running", "stopped", "failed", "finished"]
    step: int = Field(ge=0)
    steps: int = Field(ge=0)
    reason: str = ""
    seconds: dict[str, float] = {}
    queued: float | None = None
    device: str = ""
    restarts: int = 0
    stop_requested: bool = False


def read(folder: Path) -> RunState | None:
    """Return the state in a run's folder, or None if the file is missing or damaged; then it is set aside."""
    return records.read(folder / FILE, RunState, None)


def write(folder: Path, state: RunState) -> None:
    """Replace the state in a run's folder and in the index of its output folder."""
    write_text(folder / FILE, state.model_dump_json(exclude_defaults=True))
    enter(Index(folder.parent), folder.name, state, stamp(folder))


def stamp(folder: Path) -> str:
    """Return the modification times of the files that a run's row in the index is read from; "" for none."""
    times = []
    for name in (FILE, "config.yaml", owners.FILE):
        with contextlib.suppress(OSError):
            times.append(f"{name} {(folder / name).stat().st_mtime_ns}")
    return ", ".join(times)


def enter(index: Index, name: str, state: RunState, run_stamp: str) -> None:
    """Enter the state of a run into the index."""
    times = [int(part.split()[-1]) for part in run_stamp.split(", ") if part and not part.startswith(owners.FILE)]
    changed, owner = max(times, default=0) / 1e9, owners.read(index.output / name)
    place = state.queued
    if state.status == "waiting" and place is None:  # of an earlier version
        place = changed
    row = {
        "name": name, "run_stamp": run_stamp, "status": state.status, "step": state.step, "steps": state.steps,
        "reason": state.reason, "place": place, "device": state.device, "changed": changed, "owner": owner.owner,
        "shared": owner.shared,
    }  # fmt: skip
    updates = ", ".join(f"{column} = excluded.{column}" for column in row)
    with index.writing() as database:
        database.execute(
            f"INSERT INTO folders ({', '.join(row)}) VALUES ({', '.join('?' * len(row))}) "
            f"ON CONFLICT (name) DO UPDATE SET {updates}",
            tuple(row.values()),
        )


def request(folder: Path, what: Request) -> None:
    """Ask the process that trains a run to stop or to generate samples, after its current step."""
    write_text(folder / what, "")


def take_request(folder: Path, what: Request) -> bool:
    """Return whether there was such a request since the last call."""
    file = folder / what
    if not file.exists():
        return False
    remove(file)
    return True


def log_size(folder: Path) -> int:
    """Return the size in bytes of the event log of the run in a folder, 0 if there is none."""
    try:
        return (folder / LOG).stat().st_size
    except OSError:
        return 0
