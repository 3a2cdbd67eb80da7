"""Background work of the page: workers for waiting runs, benchmarks, the device, and files that have expired."""

import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from app.web import benchmark_runner, cleaning
from app.web.context import AppContext
from hra_diffusion.errors import UserError

PERIOD = 1.0
CLEANING_PERIOD = 3600.0


def start(context: AppContext, page: Any) -> None:
    """Do the background work in threads until the page is closed."""
    threading.Thread(target=_work, args=(context, page), name="keeper", daemon=True).start()
    threading.Thread(target=_run_benchmarks, args=(context, page), name="benchmarks", daemon=True).start()


def _work(context: AppContext, page: Any) -> None:
    cleaned = float("-inf")
    while page.is_running:
        _attempt(context.queue.start)
        _attempt(context.session.give_way)
        _attempt(context.session.return_after_run)
        if time.monotonic() - cleaned > CLEANING_PERIOD:
            cleaned = time.monotonic()
            _attempt(lambda: cleaning.delete_expired(context))
        time.sleep(PERIOD)


def _run_benchmarks(context: AppContext, page: Any) -> None:
    while page.is_running:
        if context.benchmarks.wake.is_set():
            _attempt(lambda: benchmark_runner.run_waiting(context))
        time.sleep(PERIOD)


def _attempt(action: Callable[[], object]) -> None:
    """Call ``action``. An error, such as a full disk, must not end the background work."""
    try:
        action()
    except UserError:  # shown where a person meets it
        pass
    except Exception:
        traceback.print_exc()
