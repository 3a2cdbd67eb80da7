"""The Compare tab's history: a visitor's earlier comparisons, by run and date."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from app.web.compare_results import saved
from app.web.html import date_of, note, render
from hra_diffusion.comparison.compare import BASE
from hra_diffusion.comparison.storage import Summary, read_summary

PAGE = 20
ALL_RUNS = ""
"""The choice of the dropdown that shows the comparisons of all runs."""


def summaries(folder: Path) -> list[tuple[Path, Summary]]:
    """Return the folders of a visitor's comparisons with their summaries, newest first, without damaged ones."""
    return [(path, summary) for path in saved(folder) if (summary := read_summary(path))]


def runs(found: Sequence[tuple[Path, Summary]]) -> list[str]:
    """Return the labels of the variants in comparisons, without the base model."""
    return sorted({label for _, summary in found for label in summary.labels} - {BASE})


def show_history(found: Sequence[tuple[Path, Summary]], run: str = ALL_RUNS, start: int = 0) -> Markup:
    """Return a page of the comparisons that have a variant of this label, with their dates."""
    found = [(path, summary) for path, summary in found if run in (ALL_RUNS, *summary.labels)]
    if not found:
        return note("No comparisons yet." if run == ALL_RUNS else f"No comparison of {run}.", "plain")
    rows = [(path.name, date_of(path / "results.json"), summary) for path, summary in found[start : start + PAGE]]
    return render("compare_history", rows=rows, start=start, page=PAGE, total=len(found))
