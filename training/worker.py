"""Train one prepared run: ``python -m training.worker OUTPUT NAME DEVICE LEASE [PARENT]``.

A run that was interrupted continues exactly. ``LEASE`` is the lease on the run that the calling process acquired. With
``PARENT``, the id of the process that started it on a cluster, the run ends with that process and uses the device
without asking others. Several such processes, started by Accelerate, train it together.
"""

import _thread
import contextlib
import io
import os
import signal
import sys
import threading
import time
from pathlib import Path

from hra_diffusion.errors import UserError
from hra_diffusion.libraries import BITSANDBYTES, PEFT, hide, hide_loading_bars
from hra_diffusion.processes import is_running, start_time
from training.memory.savings import is_out_of_memory
from training.runs import leases
from training.runs.dispatch import STOPPED
from training.runs.run_folder import Run
from training.runs.state import MAX_RESTARTS


def main(output: Path, name: str, device: str, lease: str, parent: str = "") -> int:
    """Train the run ``name`` of ``output`` until it ends or is asked to stop. Returns the exit code."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(encoding="utf-8")  # as the log is read
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the loop installs its own handler
    run = Run(output / name)
    if parent:
        end_with(int(parent))
    if int(os.environ.get("RANK", 0)) > 0:
        return _train(run, device, alone=True)
    leases.adopt(run.index, lease, f"run {name}")
    place, requested = run.state.queued, watch_for_stop(run)
    code = _train(run, device, alone=bool(parent))
    if code == STOPPED:
        _record_stop(run, lease, requested.is_set() or run.state.stop_requested, place)
    return code


def end_with(parent: int) -> None:
    """End this process once the process ``parent`` has ended: the cluster continues the run elsewhere."""

    started = start_time(parent)

    def watch() -> None:
        while is_running(parent, started):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def watch_for_stop(run: Run) -> threading.Event:
    """Interrupt this process as SIGTERM does once the run is asked to stop: Windows sends no such signal.

    Returns an event that is set then.
    """
    requested = threading.Event()

    def watch() -> None:
        while True:
            if run.take_request("stop"):
                requested.set()
                _thread.interrupt_main(signal.SIGTERM)
            time.sleep(0.2)

    threading.Thread(target=watch, daemon=True).start()
    return requested


def _record_stop(run: Run, lease: str, requested: bool, place: float | None) -> None:
    """Mark the run as stopped, or if nobody asked for it, as when the machine shuts down, as waiting in its place.

    A loop that had begun has marked it as stopped and released the lease: a person may have resumed the run since.
    """
    now = run.state
    if not leases.exists(run.index, lease) and (requested or now.status != "stopped"):
        return
    if requested or now.restarts >= MAX_RESTARTS:
        run.write_state("stopped", now.step, now.steps)
    else:
        run.write_state("waiting", now.step, now.steps, queued=place, restarts=now.restarts + 1)


def _train(run: Run, device: str, alone: bool) -> int:
    """``alone``: no other program shares the device, which need not be reserved."""
    try:
        from training.loop import train  # bitsandbytes is hidden by now, and a stop is handled
        from training.planning import use_for_run

        hide_loading_bars()
        config = run.config
        if alone or device.startswith("cuda"):  # of GPUs, the only one that this process sees
            config = config.model_copy(update={"device": device.split(":")[0]})
        with contextlib.nullcontext() if alone else use_for_run(config, run.index, device):
            train(config, run.folder.parent, resume=True)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        if run.state.status == "waiting":  # it failed before the loop could record it
            run.fail(str(error))
        return 1
    except (MemoryError, RuntimeError) as error:
        sys.stderr.write(f"error: {error}\n")
        if not is_out_of_memory(error):
            raise
        run.fail("out of memory; try a smaller batch size or resolution, or gradient checkpointing")
        return 1
    except KeyboardInterrupt:
        return STOPPED
    return 0


if __name__ == "__main__":
    hide(BITSANDBYTES, PEFT)
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:6]))
