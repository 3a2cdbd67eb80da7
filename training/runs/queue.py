"""Queue of training runs: each device trains one run at a time, in processes that outlive the page.

A run waits while its state says so (see ``state.RunState``). A worker process per device (see ``dispatch``) trains the
waiting runs in order and ends when none is left. Any number of pages and command lines can read and change the queue;
each may call ``start``, which also replaces a worker that was killed and continues runs that were interrupted.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hra_diffusion import trash
from hra_diffusion.files import make_folder
from hra_diffusion.models import devices
from hra_diffusion.names import validated_name
from training import config as configs
from training.config import TrainConfig
from training.runs import catalog, device_use, leases, owners
from training.runs.index import Index
from training.runs.leases import Lease
from training.runs.owners import LOCAL, UNOWNED, Owner, Person
from training.runs.run_folder import RUN_FILES, Run, RunError
from training.runs.state import MAX_RESTARTS
from training.settings.cluster import is_cluster, require_ray

Status = Literal["waiting", "running", "stopped", "failed", "died", "finished"]
OVER = ("stopped", "failed", "died")
"""Statuses of a run that ended early and can be resumed."""
GAP = 0.001
"""Between the places of neighbours in the queue, which are otherwise the times at which they were queued."""
DETACHED = {"start_new_session": True, "creationflags": getattr(subprocess, "CREATE_NO_WINDOW", 0)}
"""Popen options: Ctrl-C does not reach the process, and closing the terminal does not end it."""


@dataclass(frozen=True)
class Job:
    """A run with its status and progress.

    Attributes:
        place: number of runs before it in the queue, if it is waiting.
        waits_for: what uses the memory that it needs, if it has been started and waits for it.
        owner: whose it is.
    """

    run: Run
    status: Status
    step: int
    steps: int
    reason: str = ""
    place: int | None = None
    waits_for: str = ""
    owner: Owner = UNOWNED


@dataclass(frozen=True)
class Queue:
    """The runs of one output folder."""

    output: Path

    @property
    def index(self) -> Index:
        """The index of the output folder."""
        return Index(self.output)

    def add(self, config: TrainConfig, owner: Owner = UNOWNED) -> Run:
        """Prepare a run and append it to the queue. Raises RunError if its name is taken."""
        run = Run(self.output / config.name)
        require_ray(config.jobs)
        with self.index.writing():
            if run.folder.exists():
                raise RunError(f"a run called {config.name!r} exists already; choose another name")
            owners.write(run.folder, owner)  # first: others must never see the run
            configs.write(config, run.folder / "config.yaml")
            run.write_state("waiting", 0, config.steps, queued=self._last_place(), device=_device_of(config))
        return run

    def continue_with(self, config: TrainConfig) -> None:
        """Resume a run with other settings that do not decide its weights, such as another place to train."""
        run = Run(self.output / config.name)
        run.require_resumable(config, resume=True)
        with self.index.writing():
            job = self.job(config.name)
            self.resume(config.name, config.steps if job.status == "finished" else None)
            configs.write(config, run.folder / "config.yaml")
            run.write_state("waiting", job.step, config.steps, device=_device_of(config))

    def resume(self, name: str, steps: int | None = None) -> None:
        """Append a stopped, failed or dead run to the queue; it continues from its last checkpoint.

        A finished run needs ``steps``, more than it has trained, and goes on to that number of steps.
        """
        with self.index.writing():
            job = self.job(name)
            if steps is not None:
                self._prepare_more_steps(job, steps)
            elif job.status not in OVER:
                raise RunError(f"{name!r} is {job.status}: there is nothing to resume")
            job.run.take_request("stop")
            job.run.write_state("waiting", job.step, steps or job.steps, queued=self._last_place(), restarts=0)

    def _prepare_more_steps(self, job: Job, steps: int) -> None:
        run, name = job.run, job.run.name
        if job.status != "finished":
            raise RunError(f"{name!r} is {job.status}; only a finished run can go on to more steps")
        if steps <= run.config.steps:
            raise RunError(f"{name!r} has trained {run.config.steps} steps; ask for more than that")
        if not run.states():
            raise RunError(f"the training states of {name!r} were deleted; start another run from its adapter")
        configs.write(configs.parse(run.config.model_dump(mode="json") | {"steps": steps}), run.folder / "config.yaml")

    def drop_states(self, name: str) -> None:
        """Delete the training states of a finished run, which then can't go on. Its adapters stay."""
        with self.index.writing():
            if (job := self.job(name)).status != "finished":
                raise RunError(f"{name!r} is {job.status}; only a finished run needs no training state")
            job.run.prune_states(0)

    def waiting(self) -> list[str]:
        """Names of the waiting runs, the next one first."""
        return [job.run.name for job in self.jobs() if job.status == "waiting"]

    def move(self, name: str, place: int) -> None:
        """Move a waiting run to another place (0 is next)."""
        with self.index.writing():
            job = self._waiting_job(name)
            places = self._places()
            names = [other for other in places if other != name]
            names.insert(max(0, place), job.run.name)
            for number, waiting in enumerate(names):
                run = Run(self.output / waiting)
                run.write_state("waiting", run.state.step, run.state.steps, queued=min(places.values()) + number * GAP)

    def _places(self) -> dict[str, float]:
        """Return the places of the waiting runs that no process has taken, in order."""
        return {row["name"]: row["place"] for row in self._waiting_rows(self.training())}

    def _waiting_rows(self, training: Collection[str]) -> list[Any]:
        rows = self.index.rows("SELECT name, place, device FROM folders WHERE status = 'waiting' ORDER BY place, name")
        return [row for row in rows if row["name"] not in training]

    def _last_place(self) -> float:
        """Return a place after all waiting runs: the time, or more after many moves within a moment."""
        return max([time.time(), *(place + GAP for place in self._places().values())])

    def cancel(self, name: str) -> None:
        """Remove a waiting run from the queue; its checkpoints stay."""
        with self.index.writing():
            job = self._waiting_job(name)
            job.run.write_state("stopped", job.step, job.steps)

    def discard(self, name: str) -> None:
        """Move a run that ended early, with its checkpoints, to the bin. Raises RunError for any other status."""
        with self.index.writing():  # no one can resume it meanwhile
            job = self.job(name)
            if job.status not in OVER:
                raise RunError(f"{name!r} is {job.status}; only a stopped, failed or dead run can be deleted here")
            trash.move_to_trash(job.run.folder, self.output)
            self.index.forget(name)

    def stop(self, name: str) -> None:
        """Ask a running run, of the queue or of a command line, to finish its step, save and end."""
        job = self.job(name)
        if job.status != "running":
            raise RunError(f"{name!r} is {job.status}: there is nothing to stop")
        job.run.request("stop")

    def end(self, name: str) -> None:
        """Cancel a run that waits, or stop one that trains; a run that is over stays as it is."""
        status = self.job(name).status
        if status == "waiting":
            self.cancel(name)
        elif status == "running":
            self.stop(name)

    def job(self, name: str) -> Job:
        """Return a run with its status: "died" if it is recorded as running and no process trains it."""
        folder = self.output / validated_name(name)
        if not any((folder / file).is_file() for file in RUN_FILES):
            raise self.missing(name)
        catalog.refresh_run(self.index, folder.name)
        jobs = self._jobs("name = ?", folder.name)
        if not jobs:
            raise RunError(f"{folder} is not the folder of a run")
        return jobs[0]

    def missing(self, name: str) -> RunError:
        """The error for a run that does not exist."""
        return RunError(f"there is no run called {name!r} in {self.output}")

    def jobs(self, limit: int | None = None, person: Person = LOCAL) -> list[Job]:
        """Return the runs that a person may see: those that train, the waiting ones in order, then the newest."""
        catalog.scan_runs(self.index)
        condition, values = person.visible
        return self._jobs(f"status IS NOT NULL AND {condition}", *values, limit=limit)

    def count(self, status: str) -> int:
        """Return the number of runs with a status in their files."""
        return self.index.value("SELECT count(*) FROM folders WHERE status = ?", status)

    def _jobs(self, condition: str, *values: Any, limit: int | None = None) -> list[Job]:
        training, jobs = self.training(), []
        places = {row["name"]: number for number, row in enumerate(self._waiting_rows(training))}
        rows = self.index.rows(
            f"SELECT name, status, step, steps, reason, place, owner, shared FROM folders WHERE {condition} "
            f"ORDER BY name IN ({','.join('?' * len(training))}) DESC, status = 'waiting' DESC, "
            "CASE status WHEN 'waiting' THEN place END, changed DESC LIMIT ?",
            *values,
            *training,
            -1 if limit is None else limit,
        )
        for row in rows:
            status, place = row["status"], None
            if row["name"] in training and status in ("waiting", "running"):
                status = "running"
            elif status == "running":
                status = "died"
            elif status == "waiting":
                place = places.get(row["name"])
            run = Run(self.output / row["name"])
            users = self.waits_for(run.name) if status == "running" and row["status"] == "waiting" else ""
            owner = Owner(owner=row["owner"], shared=bool(row["shared"]))
            jobs.append(Job(run, status, row["step"], row["steps"], row["reason"], place, users, owner))
        return jobs

    def training(self) -> dict[str, Lease]:
        """Return the leases of the runs that a process trains or is about to, by name."""
        return leases.training(self.index)

    def trainer(self, name: str) -> Lease | None:
        """Return the lease of the process that trains a run or is about to, or None."""
        return self.training().get(name)

    def start(self) -> None:
        """Start a worker for each device that waiting runs can use and that has none. Returns at once."""
        self.restore_interrupted()
        asked = [row["device"] for row in self._waiting_rows(self.training())]
        for device in _worker_devices(asked):
            if not leases.live(self.index, f"worker {device}"):
                self._start_worker(device)

    def _start_worker(self, device: str) -> None:
        with (make_folder(self.output / ".queue") / "worker.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", _dispatcher(device), str(self.output.resolve()), device],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **DETACHED,
            )
        threading.Thread(target=worker.wait, daemon=True).start()  # reap the process when it ends

    def restore_interrupted(self) -> None:
        """Put runs of the queue that were interrupted, as by a power cut, back in their places."""
        rows = self.index.rows("SELECT name FROM folders WHERE status = 'running' AND place IS NOT NULL")
        for name in [row["name"] for row in rows]:
            with self.index.writing():
                watched = self.trainer(name) or leases.live(self.index, f"end of {name}")
                state = Run(self.output / name).state
                if not watched and state.status == "running" and state.restarts < MAX_RESTARTS:
                    restarts = state.restarts + 1
                    Run(self.output / name).write_state("waiting", state.step, state.steps, restarts=restarts)

    def waits_for(self, name: str) -> str:
        """Return what uses the memory that a starting run waits for; "" if it waits for none."""
        for lease in leases.live(self.index, kind="device"):
            if lease.waiting and lease.purpose == leases.run_purpose(name):
                others = leases.live(self.index, lease.resource)
                return device_use.describe([other for other in others if not other.waiting])
        return ""

    def busy(self) -> Run | None:
        """Return a run that is training, from this queue or a command line, or None."""
        return next((Run(self.output / name) for name in self.training()), None)

    def _waiting_job(self, name: str) -> Job:
        job = self.job(name)
        if job.status != "waiting":
            raise RunError(f"{name!r} is not waiting in the queue")
        return job


def _device_of(config: TrainConfig) -> str:
    """Return what a run waits for in the queue: a device of this machine, "" for any, or a cluster."""
    return config.cluster or config.device or ""


def _dispatcher(device: str) -> str:
    return "training.cluster.dispatch" if is_cluster(device) else "training.runs.dispatch"


def _worker_devices(asked: list[str]) -> list[str]:
    """Return the devices whose workers can train runs that ask for these devices, "" for any."""
    found: dict[str, None] = dict.fromkeys(filter(is_cluster, asked))
    own = devices.training_devices()
    for device in (device for device in asked if not is_cluster(device)):
        matching = [name for name in own if not device or name == device or name.split(":")[0] == device]
        found |= dict.fromkeys(matching or [device])
    return list(found)
