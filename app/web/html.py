"""The template environment and the pieces of HTML that several tabs share.

Templates escape every value (autoescape). What they return is ``Markup``: a string that other templates insert as it
is, and that escapes the plain strings added to it.
"""

import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from hra_diffusion.comparison.report import data_uri
from hra_diffusion.models.sources import ASSETS

THUMBNAIL_SIDE, SAMPLE_WIDTH = 320, 900
SAMPLES = {
    "demo": "An example: photos of a toy robot, then the base model, LoRA and HRA from the same noise.",
    "drawn": "Examples from the built-in base model, without any adapter.",
}
"""Sample results in the assets, with their captions."""

environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: object) -> Markup:
    """Render ``templates/{template}.html``."""
    return Markup(environment.get_template(f"{template}.html").render(values))


def file_url(path: Path) -> str:
    """Return the URL of a file in the outputs folder, relative to the working directory where possible."""
    path, here = path.absolute(), Path.cwd()
    return f"gradio_api/file={quote((path.relative_to(here) if path.is_relative_to(here) else path).as_posix())}"


def date_of(path: Path) -> str:
    """Return the day on which a file was made: "29 Nov 2026"; "" if it is gone."""
    try:
        return time.strftime("%d %b %Y", time.localtime(path.stat().st_mtime))
    except OSError:
        return ""


def image_url(source: Path | Image.Image) -> str:
    """Return the URL of an image file, or an image in memory as a data URI."""
    return file_url(source) if isinstance(source, Path) else data_uri(source, "jpeg", THUMBNAIL_SIDE)


@functools.cache
def _sample_url(name: str) -> str:
    with Image.open(ASSETS / "samples" / f"{name}.png") as image:
        return data_uri(image, "jpeg", SAMPLE_WIDTH)


environment.globals |= {"file_url": file_url, "image_url": image_url, "sample_url": _sample_url, "SAMPLES": SAMPLES}
_parts = environment.get_template("parts.html").make_module()


def _part(name: str, *args: object, **kwargs: object) -> Markup:
    return getattr(_parts, name)(*args, **kwargs)


def image(source: Path | Image.Image, alt: str, zoom: bool = True) -> Markup:
    """Return an ``<img>``. With ``zoom`` a click opens it large."""
    return _part("image", source, alt, zoom)


def button(text: str, action: str, /, *, main: bool = False, **data: object) -> Markup:
    """Return a button that reports ``action`` and ``data`` to Python (see ``theme.CLICKS``)."""
    return _part("button", text, action, main, **data)


def badge(text: str, kind: str = "") -> Markup:
    """Return a label in a rounded box; ``kind`` is "", "warn", "bad" or "ok"."""
    return _part("badge", text, kind)


def note(text: str | Sequence[str], kind: str = "") -> Markup:
    """Return one message or a list of messages in a coloured box, or nothing for no text."""
    return _part("note", [text] if isinstance(text, str) and text else list(text), kind)


def empty_state(title: str, text: str, sample: str = "") -> Markup:
    """Return the placeholder of an empty tab: what will be here, the first step, and a result from ``SAMPLES``."""
    return _part("empty_state", title, text, sample)


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
    """Return a list of names and values; pairs without a value are left out."""
    return _part("facts", [(name, value) for name, value in pairs if value not in ("", None)])


def step_title(number: int, text: str, hint: str = "") -> Markup:
    """Return the heading of a step of the form."""
    return _part("step_title", number, text, hint)


def progress_bar(fraction: float, label: str) -> Markup:
    """Return a progress bar for a fraction from 0 to 1."""
    return _part("progress_bar", round(100 * min(1.0, max(0.0, fraction))), label)


def loss_plot(
    steps: Sequence[int], losses: Sequence[float], smoothed: Sequence[float], total: int,
    validation: Mapping[int, float] | None = None,
) -> Markup:  # fmt: skip
    """Return the losses over the steps as an SVG, with the validation losses by step. The scale covers 98 %."""
    if len(steps) < 2:
        return Markup("")
    width, height, left, right, top, bottom = 560, 190, 44, 552, 6, 166
    validation = validation or {}
    highest = max(sorted(losses)[int(0.98 * (len(losses) - 1))], *validation.values(), 0.0) * 1.05 or 1.0

    def points(steps: Iterable[int], values: Iterable[float]) -> str:
        return " ".join(
            f"{left + (right - left) * step / total:.1f},{bottom - (bottom - top) * min(value, highest) / highest:.1f}"
            for step, value in zip(steps, values, strict=True)
        )

    ticks = [(round(bottom - (bottom - top) * part), highest * part) for part in (0, 0.5, 1)]
    return render(
        "loss_plot", width=width, height=height, left=left, right=right, steps=total, ticks=ticks,
        raw=points(steps, losses), smoothed=points(steps, smoothed), last=smoothed[-1],
        validation=points(validation, validation.values()),
    )  # fmt: skip
