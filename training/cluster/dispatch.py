"""Worker of a cluster: hands the waiting runs to Ray: ``python -m training.cluster.dispatch OUTPUT ADDRESS``.

Each run is a task that asks for its GPUs or CPUs and the memory that the planner predicts. Ray decides where and when
it is executed, and executes it again after its machine is lost. This process mirrors the runs' folders: progress comes
to the output folder, requests go to the tasks. It ends if the cluster is lost, and may be killed at any time:
``Queue.start`` starts another one, and the runs continue from their last checkpoints in the storage.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from hra_diffusion.errors import UserError, first_line
from training import config as configs
from training.cluster import inputs
from training.cluster.storage import Mirror, place_of, reaching
from training.cluster.task import REQUESTS, AttemptError, train_run
from training.config import TrainConfig
from training.runs import calibration, leases, state
from training.runs.index import Index
from training.runs.run_folder import Run
from training.runs.state import MAX_RESTARTS, RunState

POLL_SECONDS = 1.0
PATIENCE, CONNECT_SECONDS = 600.0, 15.0
"""How long to try to reach the cluster: if a run was handed to it before, and if not."""
SILENCE_SECONDS = 1800.0
"""A run that writes no event for so long, and for twice its longest silence so far, hangs."""


@dataclass
class Submitted:
    """A run that was handed to the cluster.

    Attributes:
        task: reference to the result of its task.
        lease: holder of the lease on the run, once the task has begun.
        temporary: whether its place in the storage is deleted at its end.
    """

    run: Run
    mirror: Mirror
    task: Any
    temporary: bool
    lease: str = ""


def dispatch(index: Index, address: str) -> None:
    """Train the waiting runs of an output folder on a cluster until none is left.

    Returns at once if the cluster has a worker already. Runs fail if the cluster can't be reached.
    """
    with leases.held(index, f"worker {address}", "dispatch", f"the worker of {address}") as worker:
        if not worker:
            return
        try:
            connect(address, PATIENCE if _was_there(index, address) else CONNECT_SECONDS)
        except UserError as error:
            for name in _waiting(index, address):
                Run(index.output / name).fail(str(error))
            return
        submitted: dict[str, Submitted] = {}
        while True:
            for name in [name for name in _waiting(index, address) if name not in submitted]:
                with _failing(Run(index.output / name)):
                    submitted[name] = submit(Run(index.output / name))
            for name, job in list(submitted.items()):
                if follow(job):
                    del submitted[name]
            with index.writing():
                if not submitted and not _waiting(index, address):
                    leases.release(index, worker)  # in the same transaction: a run added later starts another worker
                    return
            time.sleep(POLL_SECONDS)


def connect(address: str, seconds: float) -> None:
    """Connect this process to a cluster. Raises UserError if it can't be reached within ``seconds``."""
    end = time.monotonic() + seconds
    while not ray.is_initialized():
        try:
            ray.init("auto" if address == "ray" else address, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            if time.monotonic() > end:
                raise UserError(
                    f"there is no Ray cluster at {address} ({first_line(error)}); start one (ray start --head), or "
                    "give its address: --jobs ray://HOST:10001"
                ) from error
            time.sleep(POLL_SECONDS)


def _waiting(index: Index, address: str) -> list[str]:
    taken = leases.training(index)
    rows = index.rows("SELECT name FROM folders WHERE status = 'waiting' AND device = ? ORDER BY place", address)
    return [row["name"] for row in rows if row["name"] not in taken]


def _was_there(index: Index, address: str) -> bool:
    return any((index.output / name / inputs.FOLDER).is_dir() for name in _waiting(index, address))


@contextlib.contextmanager
def _failing(run: Run) -> Iterator[None]:
    """An error within the block that a person can fix marks the run as failed."""
    try:
        yield
    except UserError as error:
        run.fail(str(error))


def submit(run: Run) -> Submitted:
    """Put a run into the storage and hand its task to the cluster. Raises UserError if it can't be."""
    config, mirror = store(run)
    device = device_of(config)
    remote: Any = ray.remote(train_run).options(
        name=f"train {run.name}",
        num_cpus=1 if device == "cuda" else config.processes,
        num_gpus=config.processes if device == "cuda" else 0,
        memory=predicted_memory(config, run.index, device),
        max_retries=-1,  # the task itself limits them (``state.MAX_RESTARTS``)
        retry_exceptions=[AttemptError],
    )
    task = remote.remote(mirror.url, device, config.processes, SILENCE_SECONDS)
    return Submitted(run, mirror, task, config.storage is None)


def store(run: Run) -> tuple[TrainConfig, Mirror]:
    """Put a run into the storage. Progress that did not arrive here, as while the disk was full, is brought first."""
    config = run.config
    mirror = Mirror(run.folder, place_of(config.storage, run.folder.parent, run.name))
    with reaching(mirror.url):
        for what in REQUESTS:  # of an earlier attempt
            run.take_request(what)
            mirror.take(what)
        if ahead := mirror.claim(run.state):
            try:
                mirror.pull()
            finally:  # settings may have changed since
                configs.write(config, run.folder / "config.yaml")
            state.write(run.folder, ahead)
    config = inputs.gather(run)
    with reaching(mirror.url):
        mirror.push()
    return config, mirror


def device_of(config: TrainConfig) -> str:
    """Return the type of device on which the cluster trains a run: by default a GPU if it has any."""
    return (config.device or ("cuda" if ray.cluster_resources().get("GPU") else "cpu")).split(":")[0]


def predicted_memory(config: TrainConfig, index: Index, device: str) -> int:
    """Return the bytes that a run needs on its machine: measured here, or predicted.

    A run on a GPU is given as much of the machine's memory as it needs on the GPU: its weights pass through it.
    """
    measured = calibration.load(index.output, config)
    if measured and measured.memory:
        return config.processes * measured.memory
    from training.memory.fit import fit_to_limit  # takes seconds to import

    return config.processes * fit_to_limit(config, device)[1].peak


def follow(job: Submitted) -> bool:
    """Bring the progress of a run to its folder, and requests to its task. Returns whether it has ended."""
    done, _ = ray.wait([job.task], timeout=0)
    if _is_cancelled(job):
        ray.cancel(job.task)
        with _outage(job.mirror):  # a task that begins nevertheless finds it stopped
            job.mirror.take_over(job.run.state.model_copy(update={"status": "stopped"}))
    elif not done:
        with _outage(job.mirror):
            for what in REQUESTS:
                if (job.run.folder / what).exists():
                    job.mirror.send(what)
                    job.run.take_request(what)
            begun = job.lease or ((stored := job.mirror.manifest()) and stored.attempt)
            if begun and _hold(job) and (found := job.mirror.pull()) and found.status in ("waiting", "running"):
                _enter(job, found)  # or it ends in a moment
        return False
    elif not _hold(job):
        return False
    else:
        reason = _failure(job.task)
        with _failing(job.run), reaching(job.mirror.url):
            if found := job.mirror.pull(strict=True):
                _enter(job, found)
            _finish(job, reason)
    if job.lease:
        leases.release(job.run.index, job.lease)
    return True


def _hold(job: Submitted) -> bool:
    """Acquire the lease on a run whose task has begun. Returns False if another process trains the run here."""
    if not job.lease:
        name = job.run.name
        job.lease = leases.acquire(job.run.index, f"run {name}", "train", leases.run_purpose(name)) or ""
    return bool(job.lease)


def _is_cancelled(job: Submitted) -> bool:
    """Whether a person took a waiting run out of the queue, deleted it, or trains it here."""
    here = not job.lease and leases.live(job.run.index, f"run {job.run.name}")
    return bool(here) or not job.run.folder.exists() or job.run.state.status not in ("waiting", "running")


@contextlib.contextmanager
def _outage(mirror: Mirror) -> Iterator[None]:
    """Within the block, the storage may fail: it is read again later."""
    try:
        yield
    except Exception as error:  # each file system has its own
        sys.stderr.write(f"{mirror.url}: {error}\n")


def _enter(job: Submitted, found: RunState) -> None:
    """Record the state in the storage as the run's, with its place in this queue."""
    with job.run.index.writing():
        if _is_cancelled(job):
            return
        before = job.run.state
        queued = before.queued if found.status in ("waiting", "running") else None
        now = found.model_copy(update={"device": before.device, "queued": queued})
        if now != before:
            job.run.write_state(**now.model_dump())


def _failure(task: Any) -> str:
    """Return why a task has failed, "" if it has not. Raises RayError if the cluster is lost."""
    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:
        return first_line(error.cause) if isinstance(error.cause, BaseException) else first_line(error)
    except (ray.exceptions.RuntimeEnvSetupError, ray.exceptions.TaskUnschedulableError) as error:
        return first_line(error)
    return ""


def _finish(job: Submitted, reason: str) -> None:
    """Record the end of a run's task that could not do so itself."""
    now = job.run.state
    if now.status in ("waiting", "running"):
        if reason or now.restarts >= MAX_RESTARTS:
            job.run.fail(reason or "its task was interrupted again and again; resume to continue")
        elif now.status == "running":  # its machine is shut down
            job.run.write_state("waiting", now.step, now.steps, restarts=now.restarts + 1)
    elif job.temporary and now.status == "finished":
        job.mirror.delete()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        dispatch(Index(Path(sys.argv[1])), sys.argv[2])
