"""Screenshots of the page for the README and docs/page.md, from the outputs of `hra-diffusion demo`.

Needs the system's chromium:

    python tests/screenshots.py [outputs/demo] [docs/images]
"""

import argparse
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from serving import choose, go, launch, serving

SUBJECT, ADAPTERS = "robot", ("robot-lora", "robot-hra")
MINUTE = 60_000
WIDTH, PHONE = 1280, (390, 844)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", default=Path("outputs/demo"), help="the demo's output folder")
    parser.add_argument("place", type=Path, nargs="?", default=Path("docs/images"), help="folder for the screenshots")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = shutil.copytree(given.source, Path(folder) / "outputs")
        with serving(output, Path("toybox"), measure=True) as served, sync_playwright() as driver:
            browser = launch(driver)
            desk = open_page(browser, served.local_url, (WIDTH, 900))
            for name, (show, height) in TABS.items():
                desk.set_viewport_size({"width": WIDTH, "height": height})
                show(desk)
                save(desk, given.place / f"page-{name}.webp")
            phone = open_page(browser, served.local_url, PHONE, dark=True, cookies=desk.context.cookies())
            go(phone, "Compare")
            phone.locator("#grid").evaluate("grid => window.scrollTo(0, grid.getBoundingClientRect().top - 90)")
            save(phone, given.place / "page-phone.webp")
            browser.close()


def open_page(browser: Any, url: str, size: tuple[int, int], dark: bool = False, cookies: Any = ()) -> Page:
    """Open the page in a window of this size, as the visitor with these cookies."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light",
        device_scale_factor=1 if size[0] == WIDTH else 2,
    )  # fmt: skip
    context.add_cookies(list(cookies))
    page = context.new_page()
    page.set_default_timeout(10 * MINUTE)
    page.goto(url)
    page.wait_for_selector("#upload")
    return page


def save(page: Page, file: Path) -> None:
    """Save a screenshot without hover, focus and animations."""
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement?.blur()")
    page.wait_for_timeout(1500)
    with Image.open(io.BytesIO(page.screenshot(animations="disabled"))) as image:
        image.convert("RGB").save(file, quality=80, method=6)


def train(page: Page) -> None:
    """A sample subject in the form with its measured cost, beside a finished run."""
    choose(page, "#sample", SUBJECT)
    page.wait_for_selector("#thumbs .thumb >> nth=4")
    page.wait_for_selector("#forecast >> text=measured on this machine")
    page.wait_for_selector("#rounds .round img")


def generate(page: Page) -> None:
    """Images of the trained subject."""
    go(page, "Generate")
    choose(page, "#adapters", ADAPTERS[-1])
    page.get_by_role("button", name="on the beach").click()
    page.wait_for_selector("text=Prompt used")
    page.get_by_label("Lock the seed").check()
    page.click("#generate-button")
    page.wait_for_selector("#stage img[data-zoom]")


def compare(page: Page) -> None:
    """Two methods and the base model from the same noise, with scores."""
    go(page, "Compare")
    choose(page, "#compare-adapters", *ADAPTERS)
    page.get_by_label("number input for Seeds per prompt").fill("1")
    page.keyboard.press("Tab")
    page.click("#compare-button")
    page.wait_for_selector("#grid img[src*=file]")


def library(page: Page) -> None:
    """An adapter's facts."""
    go(page, "Library")
    page.locator(".card", has_text=ADAPTERS[-1]).click()
    page.wait_for_selector("#facts >> text=Where it can be loaded")


TABS: dict[str, tuple[Callable[[Page], None], int]] = {
    "train": (train, 1230), "generate": (generate, 960), "compare": (compare, 1335), "library": (library, 1200),
}  # fmt: skip
"""For each tab: the function that prepares it, and the height of the screenshot."""

if __name__ == "__main__":
    main()
