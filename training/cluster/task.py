"""Task of a cluster: train a run on the machine that executes it, in a folder of its own.

A task that is executed again continues from the last checkpoint in the storage. The process that trains is that of a
local queue (``training.worker``), or with several processes as many, which Accelerate starts. The task itself imports
neither torch nor the configuration: it waits most of the time, beside a process that needs the memory.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil

from hra_diffusion.errors import UserError
from training.cluster.storage import Manifest, Mirror, SupersededError
from training.runs import leases, state
from training.runs.dispatch import record_end
from training.runs.index import Index
from training.runs.state import MAX_RESTARTS, Request, RunState

SYNC_SECONDS = 2.0
OUTAGE_SECONDS = 600.0
"""How long the storage may fail before the attempt gives up."""
BEFORE_FIRST = 4
"""How much longer the first event may take: it follows the base model, which may have to be downloaded."""
REQUESTS: tuple[Request, ...] = ("stop", "sample-now")


class AttemptError(Exception):
    """This attempt has failed for a reason that another one may not meet: the cluster executes the task again."""


@dataclass(frozen=True)
class Attempt:
    """One execution of the task.

    Attributes:
        mirror: the run's folder on this machine, and its place in the storage.
        device: "cpu" or "cuda".
        processes: how many train together, each on a GPU of its own.
        silence: seconds without an event after which the run hangs, unless a silence since the first event was half as
            long.
    """

    mirror: Mirror
    device: str
    processes: int
    silence: float

    @property
    def folder(self) -> Path:
        """The run's folder on this machine."""
        return self.mirror.folder

    def train(self) -> None:
        """Train the run until it ends. Raises AttemptError, or SupersededError if another attempt has begun."""
        index, name = Index(self.folder.parent), self.folder.name
        lease = str(leases.acquire(index, f"run {name}", "train", leases.run_purpose(name)))
        try:
            with (self.folder / "process.log").open("ab") as log:
                command = [sys.executable, *self._launcher(), *self._worker(lease)]
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                self._follow(process)
            finally:
                _end(process)
            if leases.exists(index, lease):  # or else the process has recorded its end itself
                record_end(index, name, process.returncode)
        finally:
            leases.release(index, lease)
        begin = time.monotonic()
        while not self._synchronise(begin):
            time.sleep(SYNC_SECONDS)

    def _launcher(self) -> list[str]:
        if self.processes == 1:
            return []
        return ["-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={self.processes}",
                "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]  # fmt: skip

    def _worker(self, lease: str) -> list[str]:
        folder, parent = self.folder, str(os.getpid())
        return ["-m", "training.worker", str(folder.parent), folder.name, self.device, lease, parent]

    def _follow(self, process: "subprocess.Popen[bytes]") -> None:
        """Mirror the run until its process ends. Raises AttemptError if it hangs."""
        synchronised = heard = time.monotonic()
        size, longest, limit, begun = state.log_size(self.folder), 0.0, BEFORE_FIRST * self.silence, False
        while process.poll() is None:
            if self._synchronise(synchronised):
                synchronised = time.monotonic()
            now = time.monotonic()
            if (seen := state.log_size(self.folder)) != size:
                if begun:
                    longest = max(longest, now - heard)
                size, heard, limit, begun = seen, now, max(self.silence, 2 * longest), True
            if now - heard > limit:
                raise AttemptError(f"{self.folder.name} has written no event for {now - heard:.0f} s")
            time.sleep(SYNC_SECONDS)

    def _synchronise(self, since: float) -> bool:
        """Pass on requests and upload what has changed. Returns whether the storage could be reached.

        Raises AttemptError if it could not be since ``since`` and for too long.
        """
        try:
            for what in REQUESTS:
                if self.mirror.take(what):
                    state.request(self.folder, what)
            self.mirror.push()
        except UserError:
            raise
        except Exception as error:  # each file system has its own
            if time.monotonic() - since > OUTAGE_SECONDS:
                raise AttemptError(f"{self.mirror.url} can't be reached: {error}") from error
            sys.stderr.write(f"{self.mirror.url}: {error}\n")
            return False
        return True


def train_run(url: str, device: str, processes: int, silence: float) -> str:
    """Train the run at ``url`` and return its status: "finished", "stopped", "failed", or another to be continued.

    Args:
        url: its place in the storage, where its folder is mirrored while it trains.
        device, processes, silence: see ``Attempt``.
    """
    with tempfile.TemporaryDirectory(prefix="hra-diffusion-") as scratch:
        mirror = Mirror(Path(scratch).resolve() / url.rpartition("/")[2], url, uuid.uuid4().hex)
        if (stored := mirror.manifest()) is None:
            return "stopped"
        now = _next_state(stored)
        mirror.pull()
        mirror.take_over(now)
        state.write(mirror.folder, now)
        if now.status == "waiting":
            with contextlib.suppress(SupersededError):
                Attempt(mirror, device, processes, silence).train()
        return (state.read(mirror.folder) or now).status


def _next_state(stored: Manifest) -> RunState:
    """Return the state at the start of an attempt. A run that was interrupted again and again has failed."""
    before = stored.state
    if before.status not in ("waiting", "running") or not stored.attempt:
        return before
    if before.restarts >= MAX_RESTARTS:
        reason = f"it was interrupted {before.restarts + 1} times without a new checkpoint; process.log may say why"
        return before.model_copy(update={"status": "failed", "reason": reason, "queued": None})
    return before.model_copy(update={"status": "waiting", "restarts": before.restarts + 1})


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process with those that it has started, unless it has ended."""
    if process.poll() is None:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
    process.wait()
