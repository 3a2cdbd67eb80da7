"""The Generate tab's images: saving and showing a visitor's own, and previews of those in progress."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup
from PIL import Image

from app.web.context import AppContext
from app.web.events import named
from app.web.html import date_of, empty_state, render
from hra_diffusion.errors import UserError
from hra_diffusion.files import make_folder, remove
from hra_diffusion.generation.png import PNG_KEY, read_png, save_png, slug

PAGE = 24
"""Images on one page of a visitor's own."""
ACTIONS = {"settings": "Settings", "again": "Another adapter", "compare": "Compare"}


def images_folder(context: AppContext, visitor: gr.Request) -> Path:
    """Return the folder of a visitor's images."""
    return context.visitor_folder(visitor) / "pictures"


def save_images(images: Sequence[Image.Image], folder: Path) -> list[Path]:
    """Save images with their settings inside, numbered after those already there."""
    make_folder(folder)
    first = max((int(path.name[:5]) for path in folder.glob("[0-9]*.png")), default=-1) + 1
    return [
        save_png(image, folder / f"{first + i:05d}-{slug(image.info[PNG_KEY]['prompt'])}.png")
        for i, image in enumerate(images)
    ]


def saved_images(context: AppContext, visitor: gr.Request) -> list[Path]:
    """Return the files of a visitor's images, newest first."""
    return sorted(images_folder(context, visitor).glob("[0-9]*.png"), reverse=True)


def delete_image(context: AppContext, visitor: gr.Request, name: str) -> None:
    """Delete one of a visitor's images for good. Raises UserError if there is none of this name."""
    remove(named(saved_images(context, visitor), name, "picture"))


def _read_settings(file: Path) -> dict[str, Any] | None:
    try:
        return read_png(file)
    except UserError:
        return None


def show_images(context: AppContext, visitor: gr.Request, start: int = 0) -> Markup:
    """Return a page of a visitor's images by day, newest first, below the notes on the newest one's prompt.

    Damaged files are left out.
    """
    files = saved_images(context, visitor)
    start = start if start < len(files) else max(0, start - PAGE)  # the last image of a page was deleted
    shown = [(file, settings) for file in files[start : start + PAGE] if (settings := _read_settings(file))]
    if not shown:
        return empty_state(
            "No pictures yet",
            "Choose an adapter, write a prompt and press Generate. Pictures appear here while they are generated.",
            "drawn",
        )
    notes = () if start else shown[0][1].get("notes", ())
    images = [(date_of(file), file, settings) for file, settings in shown]
    return render(
        "generate_images", images=images, notes=notes, actions=ACTIONS, start=start, page=PAGE, total=len(files)
    )


def show_progress(
    previews: Mapping[int, Image.Image], count: int, fraction: float, text: str, earlier: str = ""
) -> Markup:
    """Return the previews of ``count`` images in progress, above the ``earlier`` images."""
    return render(
        "generate_progress", previews=[previews.get(index) for index in range(count)], text=text,
        percent=round(100 * fraction), earlier=earlier,
    )  # fmt: skip
