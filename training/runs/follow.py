"""Wait for a run of the queue, and pass on its events while another process trains it."""

import threading
import time
from collections.abc import Sequence

from hra_diffusion import records
from training.runs import leases
from training.runs.events import Listener, LoggedEvent, from_json
from training.runs.queue import Job, Queue
from training.runs.run_folder import Run, RunError
from training.runs.state import LOG, MAX_RESTARTS, log_size
from training.settings.cluster import is_cluster

POLL_SECONDS = 0.5
START_SECONDS, MAX_STARTS = 20.0, 3
"""A worker that is not there after so many seconds is started again, so many times without progress."""


def wait_for(
    queue: Queue, name: str, listeners: Sequence[Listener] = (), cancelled: threading.Event | None = None
) -> Job:
    """Wait until a run of the queue ends or ``cancelled`` is set, and start workers as long as it needs one.

    ``listeners`` get the events that the run logs meanwhile. Raises RunError if workers end before they begin to train.
    """
    started, starts, reached = 0.0, 0, -1
    cancelled = cancelled or threading.Event()
    log = EventLog(queue.job(name).run)
    while _goes_on(job := queue.job(name)):
        if job.step > reached:
            reached, starts = job.step, 0
        idle = job.status != "running" and not leases.live(queue.index, _worker(job.run), "worker")
        if idle and time.monotonic() - started > START_SECONDS:
            if starts == MAX_STARTS:
                raise RunError(f"the training process ends at once; see {queue.output / '.queue' / 'worker.log'}")
            queue.start()
            started, starts = time.monotonic(), starts + 1
        log.read(listeners)
        if cancelled.wait(POLL_SECONDS):
            break
    log.read(listeners)
    return job


def _goes_on(job: Job) -> bool:
    """Whether a run waits, trains, or was interrupted with its worker, so that another one continues it."""
    interrupted = job.status == "died" and job.run.state.queued is not None and job.run.state.restarts < MAX_RESTARTS
    return job.status in ("waiting", "running") or interrupted


def _worker(run: Run) -> str:
    """Return the resource of the worker that a run needs; "" for that of any device."""
    return f"worker {device}" if is_cluster(device := run.state.device) else ""


class EventLog:
    """The events that a run logs from now on."""

    def __init__(self, run: Run):
        self.run, self.offset = run, log_size(run.folder)

    def read(self, listeners: Sequence[Listener]) -> None:
        """Pass the events since the last call to the listeners."""
        size = log_size(self.run.folder)
        if not listeners or size == self.offset:
            return
        path = self.run.folder / LOG
        with path.open("rb") as file:
            file.seek(self.offset if size > self.offset else 0)  # a run that starts over has a new log
            lines = [line for line in file if line.endswith(b"\n")]
            self.offset = (self.offset if size > self.offset else 0) + sum(map(len, lines))
        for values in records.parse_lines(path, lines, LoggedEvent):
            if event := from_json(values):
                for listener in listeners:
                    listener(event)
