"""A served page and a browser for tests."""

import contextlib
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from training.runs import calibration
from training.runs.queue import Queue

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def launch(driver: Any) -> Any:
    """Launch the system's browser."""
    return driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"])


def go(page: Any, tab: str) -> None:
    """Open a tab of the page."""
    page.get_by_role("tab", name=tab, exact=True).click()


def choose(page: Any, place: str, *names: str) -> None:
    """Choose options of a dropdown."""
    page.locator(f"{place} input").click()
    for name in names:
        page.get_by_role("option", name=name, exact=True).click()
    page.keyboard.press("Escape")


@contextlib.contextmanager
def serving(output: Path, base: Path, measure: bool = False, **options):
    """Serve the page until the block ends. ``measure``: it may measure what a run costs on this machine."""
    from app.web import server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "")  # serve() sets it; restored for a page that is served meanwhile
        if not measure:
            patch.setattr(calibration, "start", lambda output, config: None)
        page = server.serve(output, [str(base)], "cpu", "float32", port=port, block=False, **options)
        try:
            yield page
        finally:
            page.close()
            stop_runs(output)  # runs outlive the page
            wait_for_base()


def wait_for_base() -> None:
    """Wait until pages have loaded their base model: models built meanwhile would stay on the meta device."""
    from app.web.server import WARMING

    for thread in threading.enumerate():
        if thread.name == WARMING:
            thread.join()


def stop_runs(output: Path) -> None:
    """Stop all runs of an outputs folder, so that none continues during later tests."""
    queue = Queue(output)
    for name in queue.waiting():
        queue.cancel(name)
    if run := queue.busy():
        queue.stop(run.folder.name)
        deadline = time.monotonic() + 60
        while queue.busy() and time.monotonic() < deadline:
            time.sleep(0.2)
