"""Comparison reports: one self-contained HTML file with images, settings, scores and votes."""

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from hra_diffusion.comparison.compare import Comparison
from hra_diffusion.comparison.html import render as render_template
from hra_diffusion.comparison.plot import Point, scatter
from hra_diffusion.comparison.statistics import FIGURES, Statistic, clear_best, score_statistics, score_summary
from hra_diffusion.comparison.votes import QUESTIONS, Vote, tally
from hra_diffusion.files import write_text

PLOTS = {
    "prompt": "similarity to the prompt",
    "seconds": "seconds of training",
    "memory": "peak memory of training, GiB",
    "megabytes": "file size, MB",
}
"""x-axes of the plots; the y-axis is the similarity to the photos."""


def data_uri(image: Image.Image, format: str = "png", max_side: int | None = None) -> str:
    """Encode an image as a data URI, scaled down to ``max_side`` pixels if it is larger."""
    if max_side and max(image.size) > max_side:
        image = image.copy()
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.convert("RGB").save(buffer, format, **({"quality": 85} if format != "png" else {}))
    return f"data:image/{format};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write(comparison: Comparison, path: Path, votes: Sequence[Vote] = ()) -> Path:
    """Write the report; return its path."""
    write_text(path, render(comparison, votes))
    return path


def render(comparison: Comparison, votes: Sequence[Vote] = ()) -> str:
    """Return the report as HTML."""
    means = _means(comparison)
    measured = {name for statistics in means["statistics"] for name in statistics}
    return render_template(
        "report.html",
        comparison=comparison,
        data_uri=data_uri,
        score_summary=score_summary,
        figures={name: meaning for name, meaning in FIGURES.items() if name in measured},
        plots=_plots(comparison),
        standings=[(text, tally(votes, question)) for question, text in QUESTIONS.items()] if votes else [],
        titled=True,
        **means,
    )


def means(comparison: Comparison, titled: bool = True) -> str:
    """Return a table row with each variant's statistics, the clearly best in bold with a ✓; "" without scores.

    ``titled`` adds a cell on the left that names the row.
    """
    return render_template("means.html", titled=titled, **_means(comparison))


def plots(comparison: Comparison) -> str:
    """Return plots of the similarity to the photos against its costs (see PLOTS); "" if nothing can be plotted."""
    return render_template("plots.html", plots=_plots(comparison))


def _means(comparison: Comparison) -> dict[str, Any]:
    return {
        "statistics": [score_statistics(comparison, index) for index in range(len(comparison.variants))],
        "best": {name: clear_best(comparison, name) for name in ("subject", "prompt")},  # where more is better
    }


def _plots(comparison: Comparison) -> list[Markup]:
    found = {name: _points(comparison, figure) for figure, name in PLOTS.items()}
    return [
        Markup(scatter(points, name, "similarity to the photos", minimize_x=name != PLOTS["prompt"]))
        for name, points in found.items()
        if len(points) > 1
    ]


def _points(comparison: Comparison, figure: str) -> list[Point]:
    """Return a point for each variant whose ``figure`` and similarity to the photos are known."""
    points, count = [], len(comparison.prompts) * len(comparison.seeds)
    for index, variant in enumerate(comparison.variants):
        statistics = score_statistics(comparison, index)
        x = statistics.get(figure, variant.costs.get(figure))
        if "subject" in statistics and x is not None:
            (x, x_error), (y, y_error) = (_estimate(value, count) for value in (x, statistics["subject"]))
            points.append(Point(variant.label, x, y, x_error, y_error))
    return points


def _estimate(value: Statistic | float, count: int) -> tuple[float, float]:
    """Return a value and its standard error, 0 for a plain number."""
    return (value.mean, value.deviation / count**0.5) if isinstance(value, Statistic) else (value, 0.0)
