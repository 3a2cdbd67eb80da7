"""Pieces of HTML that several tabs show. Every text from outside goes through ``escape``."""

import functools
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from hra_diffusion.comparison.report import data_uri
from hra_diffusion.models.sources import ASSETS

THUMB, SAMPLE_WIDTH = 320, 900
SAMPLES = {
    "demo": "An example: photos of a toy robot, then the base model, LoRA and HRA from the same noise.",
    "drawn": "Drawn by the embedded base model, before anybody has taught it anything.",
}
"""Sample results in the assets, and what they are."""


def served(path: Path) -> str:
    """The address of a file in the outputs folder. Relative where it can be: a page need not know where we live."""
    path, here = path.absolute(), Path.cwd()
    return f"gradio_api/file={quote((path.relative_to(here) if path.is_relative_to(here) else path).as_posix())}"


def picture(source: Path | Image.Image, about: str, zoom: bool = True) -> str:
    """An image: a file of ours by its address, a picture in memory inside the page."""
    address = served(source) if isinstance(source, Path) else data_uri(source, "jpeg", THUMB)
    more = ' data-zoom tabindex="0" role="button"' if zoom else ""
    return f'<img src="{escape(address)}" alt="{escape(about)}" loading="lazy"{more}>'


def button(text: str, do: str, /, *, main: bool = False, **data: object) -> str:
    """A button that tells Python ``do`` and the data given with it."""
    more = "".join(f' data-{key}="{escape(str(value))}"' for key, value in data.items())
    return f'<button type="button" class="act{" main" if main else ""}" data-do="{do}"{more}>{escape(text)}</button>'


def badge(text: str, kind: str = "") -> str:
    """A short remark in a rounded box; ``kind``: "", "warn", "bad" or "ok"."""
    return f'<span class="badge {kind}">{escape(text)}</span>'


def note(text: str | Sequence[str], kind: str = "") -> str:
    """A remark, or a list of them, in a coloured box; nothing for no text."""
    if not text:
        return ""
    lines = [text] if isinstance(text, str) else list(text)
    inner = escape(lines[0]) if len(lines) == 1 else f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
    return f'<div class="note {kind}" role="status">{inner}</div>'


def empty(title: str, text: str, sample: str = "") -> str:
    """What an empty place says: what will be here, and the first step; ``sample``: a result of the kind, in SAMPLES."""
    shown = _sample(sample) if sample else ""
    return f'<div class="empty"><h3>{escape(title)}</h3><p class="soft">{escape(text)}</p>{shown}</div>'


@functools.cache
def _sample(name: str) -> str:
    with Image.open(ASSETS / "samples" / f"{name}.png") as image:
        drawn = f'<img src="{data_uri(image, "jpeg", SAMPLE_WIDTH)}" alt="a sample result" loading="lazy">'
    return f'<figure>{drawn}<figcaption class="soft small">{SAMPLES[name]}</figcaption></figure>'


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """A list of facts; those without a value are left out."""
    lines = [f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in pairs if value not in ("", None)]
    return f'<dl class="facts">{"".join(lines)}</dl>'


def title(number: int, text: str) -> str:
    """The heading of a step of the work."""
    return f'<div class="step-title" role="heading" aria-level="2"><b>{number}</b>{escape(text)}</div>'


def bar(part: float, what: str) -> str:
    """A progress bar for a part from 0 to 1 of ``what``."""
    percent = round(100 * min(1.0, max(0.0, part)))
    return (
        f'<div class="bar" role="progressbar" aria-label="{escape(what)}" aria-valuenow="{percent}" '
        f'aria-valuemin="0" aria-valuemax="100">'
        f'<span style="width:{percent}%"></span></div>'
    )


def loss_plot(steps: Sequence[int], losses: Sequence[float], smooth: Sequence[float], total: int) -> str:
    """The losses over the steps as an SVG: raw thin, smoothed bold; 98 of 100 values fit the scale."""
    if len(steps) < 2:
        return ""
    width, height, left, bottom = 560, 190, 44, 24
    top = sorted(losses)[int(0.98 * (len(losses) - 1))] * 1.05 or 1.0

    def line(values: Sequence[float]) -> str:
        return " ".join(
            f"{left + (width - left - 8) * step / total:.1f},"
            f"{6 + (height - bottom - 6) * (1 - min(value, top) / top):.1f}"
            for step, value in zip(steps, values, strict=True)
        )

    marks = "".join(
        f'<line class="grid" x1="{left}" x2="{width - 8}" y1="{y}" y2="{y}"/>'
        f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{top * part:.2g}</text>'
        for part in (0, 0.5, 1)
        for y in (round(6 + (height - bottom - 6) * (1 - part)),)
    )
    ends = (
        f'<text x="{left}" y="{height - 6}">0</text>'
        f'<text x="{width - 8}" y="{height - 6}" text-anchor="end">step {total}</text>'
    )
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="loss, now {smooth[-1]:.3g}">'
        f'{marks}{ends}<polyline class="raw" points="{line(losses)}"/>'
        f'<polyline class="smooth" points="{line(smooth)}"/></svg>'
    )
