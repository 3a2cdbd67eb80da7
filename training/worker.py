"""Train one prepared run: ``python -m training.worker OUTPUT NAME``. A run that was interrupted continues exactly."""

import _thread
import io
import signal
import sys
import threading
import time
from pathlib import Path

from hra_diffusion.errors import UserError
from hra_diffusion.libraries import hide_bitsandbytes, hide_loading_bars
from training.memory.savings import is_out_of_memory
from training.runs.queue import STOPPED, Queue
from training.runs.run_folder import Run


def main(output: Path, name: str) -> int:
    """Train the run ``name`` of ``output`` until it ends or is asked to stop. Returns the exit code."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(encoding="utf-8")  # as the log is read
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the loop installs its own handler
    watch_for_stop(Queue(output), name)
    return _train(output, name)


def watch_for_stop(queue: Queue, name: str) -> None:
    """Interrupt this process as SIGTERM does once ``queue.stop(name)`` is called: Windows sends no such signal."""

    def watch() -> None:
        while True:
            if queue.take_stop(name):
                _thread.interrupt_main(signal.SIGTERM)
            time.sleep(0.2)

    threading.Thread(target=watch, daemon=True).start()


def _train(output: Path, name: str) -> int:
    run = Run(output / name)
    try:
        from training.loop import train  # bitsandbytes is hidden by now, and a stop is handled

        hide_loading_bars()
        train(run.config, output, resume=True)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        if run.state["status"] == "waiting":  # it failed before the loop could record it
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
    hide_bitsandbytes()
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
