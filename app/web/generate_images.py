"""The Generate tab's images: saving and showing a visitor's own, and previews of those in progress."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup
from PIL import Image

from app.web.context import AppContext
from app.web.html import empty_state, render
from hra_diffusion.errors import UserError
from hra_diffusion.files import make_folder
from hra_diffusion.generation.png import PNG_KEY, read_png, save_png, slug

MAX_SHOWN = 24
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


def saved_images(context: AppContext, visitor: gr.Request) -> list[tuple[Path, dict[str, Any]]]:
    """Return a visitor's images with their settings, newest first. Damaged files are left out."""
    files = sorted(images_folder(context, visitor).glob("[0-9]*.png"), reverse=True)[:MAX_SHOWN]
    return [(file, settings) for file in files if (settings := _read_settings(file))]


def _read_settings(file: Path) -> dict[str, Any] | None:
    try:
        return read_png(file)
    except UserError:
        return None


def show_images(context: AppContext, visitor: gr.Request) -> Markup:
    """Return a visitor's images, below the notes on the newest one's prompt."""
    images = saved_images(context, visitor)
    if not images:
        return empty_state(
            "No pictures yet",
            "Choose an adapter, write a prompt and press Generate. Pictures appear here while they are generated.",
            "drawn",
        )
    return render("generate_images", images=images, notes=images[0][1].get("notes", ()), actions=ACTIONS)


def show_progress(
    previews: Mapping[int, Image.Image], count: int, fraction: float, text: str, earlier: str = ""
) -> Markup:
    """Return the previews of ``count`` images in progress, above the ``earlier`` images."""
    return render(
        "generate_progress", previews=[previews.get(index) for index in range(count)], text=text,
        percent=round(100 * fraction), earlier=earlier,
    )  # fmt: skip
