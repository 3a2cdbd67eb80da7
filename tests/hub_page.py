"""The page in a process with hub settings of its own, which huggingface_hub reads only when it is imported."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from conftest import ROOT
from serving import CHROMIUM, launch

MINUTE = 60_000


@contextlib.contextmanager
def page_process(output: Path, environment: dict[str, str], *flags: str) -> Iterator[str]:
    """Start ``hra-diffusion app`` and yield its address."""
    command = [sys.executable, "-u", "-m", "app.cli", "app", "--output", str(output), "--device", "cpu", *flags]
    with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, cwd=ROOT) as page:
        try:
            line = next(line for line in page.stdout or () if "hra-diffusion is at" in line)
            yield re.findall(r"http\S+", line)[0]
        finally:
            page.terminate()


def choose_from_hub(output: Path, environment: dict[str, str], photos: Sequence[Path], name: str) -> None:
    """Drop photos on a page that runs on toybox, download a base model from the hub and use it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright's Python package")
    if CHROMIUM is None:
        pytest.skip("needs the system's chromium (apt-get install chromium)")
    with page_process(output, environment) as address, playwright.sync_playwright() as driver:
        browser = launch(driver)
        page = browser.new_page()
        page.set_default_timeout(2 * MINUTE)
        page.goto(address)
        page.wait_for_selector("#upload")
        page.set_input_files("#upload input[type=file]", photos)
        page.wait_for_selector("#base-notice .note.big")
        page.click("#choose-base")
        page.locator("#base-id input").fill(name)
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Look up").click()
        page.wait_for_selector("#found-base >> text=openrail")
        page.locator("#found-base button").click()
        page.wait_for_selector("#base-download [role=progressbar]")
        page.locator("#base-download button", has_text="Use").click()
        page.wait_for_selector("#base-notice >> text=tiny-sd")
        playwright.expect(page.locator("#base input")).to_have_value("tiny-sd", timeout=MINUTE)
        assert page.locator("#base-notice .note").count() == 0
        browser.close()
