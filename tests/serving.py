"""The page, really served, for as long as a test needs it."""

import contextlib
import socket
import time
from pathlib import Path

from training.jobs import Queue


@contextlib.contextmanager
def serving(output: Path, base: Path, **options):
    """The page at its address, stopped when the block ends."""
    from app.page import server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = server.serve(output, [str(base)], "cpu", "float32", port=port, block=False, **options)
    try:
        yield page
    finally:
        page.close()
        stop_runs(output)  # they outlive the page


def stop_runs(output: Path) -> None:
    """End what is being trained in an outputs folder, so that nothing goes on beside the tests that follow."""
    queue = Queue(output)
    for name in queue.waiting():
        queue.cancel(name)
    if run := queue.busy():
        queue.stop(run.folder.name)
        deadline = time.monotonic() + 60
        while queue.busy() and time.monotonic() < deadline:
            time.sleep(0.2)
