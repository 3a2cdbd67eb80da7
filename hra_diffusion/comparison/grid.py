"""The labelled grid of a comparison as one image."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from hra_diffusion.comparison.compare import Comparison
from hra_diffusion.comparison.statistics import score_summary

GAP, MARGIN = 6, 14
PHOTO_COLUMNS = 2
"""Columns of reference photos on the left."""
BLACK, GRAY, BLUE = "black", "#555", "#1f4e9e"


def draw_grid(comparison: Comparison) -> Image.Image:
    """Draw one row per prompt and seed and one column per variant, with reference photos on the left."""
    layout = _Layout.of(comparison)
    sheet = Image.new("RGB", layout.size, "white")
    pen = ImageDraw.Draw(sheet)
    _draw_labels(pen, comparison, layout)
    y = MARGIN + layout.line
    for p, s, photos in _rows(comparison, layout.photo_columns):
        if s == 0:
            title = comparison.prompts[p].replace("{subject}", comparison.variants[0].subject)
            pen.text((MARGIN, y), fit(title, layout.font, sheet.width - 2 * MARGIN), BLUE, layout.font)
            y += layout.line
        samples = comparison.row(p, s)
        for x, image in zip(layout.columns, [*photos, *(sample.image for sample in samples)], strict=True):
            padded = ImageOps.pad(image.convert("RGB"), (layout.side, layout.side), color="white")
            sheet.paste(padded, (x, y))
        for x, sample in zip(layout.columns[layout.photo_columns :], samples, strict=True):
            if sample.score:
                text = fit(score_summary(sample.score), layout.small_font, layout.side)
                pen.text((x, y + layout.side + 2), text, GRAY, layout.small_font)
        y += layout.side + layout.score_line + GAP
    return sheet


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels; ``columns`` are the columns' left edges."""

    side: int
    line: int
    score_line: int
    photo_columns: int
    columns: list[int]
    size: tuple[int, int]
    font: Any
    small_font: Any

    @classmethod
    def of(cls, comparison: Comparison) -> "_Layout":
        side = max(*comparison.samples[0].image.size, 128)
        font_size = max(13, side // 11)
        line = int(font_size * 1.35)
        score_line = line if any(sample.score for sample in comparison.samples) else 0
        photo_columns = PHOTO_COLUMNS if comparison.photos else 0
        left, count = MARGIN + photo_columns * GAP, photo_columns + len(comparison.variants)
        rows = len(comparison.prompts) * len(comparison.seeds)
        return cls(
            side,
            line,
            score_line,
            photo_columns,
            [left + i * (side + GAP) for i in range(count)],
            (
                left + count * (side + GAP) + MARGIN,
                2 * MARGIN + line + rows * (side + score_line + GAP) + len(comparison.prompts) * line,
            ),
            ImageFont.load_default(size=font_size),
            ImageFont.load_default(size=max(11, side // 13)),
        )


def _draw_labels(pen: ImageDraw.ImageDraw, comparison: Comparison, layout: _Layout) -> None:
    if layout.photo_columns:
        pen.text((layout.columns[0], MARGIN), "photos", GRAY, layout.font)
    for x, variant in zip(layout.columns[layout.photo_columns :], comparison.variants, strict=True):
        pen.text((x, MARGIN), fit(variant.label, layout.font, layout.side), BLACK, layout.font)


def _rows(comparison: Comparison, photo_columns: int) -> Iterator[tuple[int, int, list[Image.Image]]]:
    """Yield each row's prompt and seed (indices) and its reference photos, which take turns."""
    number = 0
    for p in range(len(comparison.prompts)):
        for s in range(len(comparison.seeds)):
            first = photo_columns * number
            yield p, s, [comparison.photos[(first + i) % len(comparison.photos)] for i in range(photo_columns)]
            number += 1


def fit(text: str, font: Any, width: int) -> str:
    """Shorten the text to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
