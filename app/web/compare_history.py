"""The Compare tab's history: a visitor's earlier comparisons, by run and date."""

from pathlib import Path

from markupsafe import Markup

from app.web.html import date_of, note, render
from hra_diffusion.comparison.compare import BASE
from hra_diffusion.comparison.storage import read_summary
from hra_diffusion.errors import UserError

PAGE = 20
ALL_RUNS = ""
"""The choice of the dropdown that shows the comparisons of all runs."""


def saved(folder: Path) -> list[Path]:
    """Return the folders of a visitor's comparisons, newest first."""
    return sorted((path.parent for path in folder.glob("compare/[0-9]*/results.json")), reverse=True)


def find(folder: Path, name: str) -> Path:
    """Return the folder of a comparison by its number. Raises UserError if the visitor has none of this number."""
    found = next((path for path in saved(folder) if path.name == name), None)
    if found is None:
        raise UserError("this comparison no longer exists; reload the page")
    return found


def runs(folder: Path) -> list[str]:
    """Return the labels of the variants in a visitor's comparisons, without the base model."""
    summaries = [summary for path in saved(folder) if (summary := read_summary(path))]
    return sorted({label for summary in summaries for label in summary.labels} - {BASE})


def show_history(folder: Path, run: str = ALL_RUNS, start: int = 0) -> Markup:
    """Return a page of a visitor's comparisons that have a variant of this label, newest first, with their dates."""
    found = [(path, summary) for path in saved(folder) if (summary := read_summary(path))]
    found = [(path, summary) for path, summary in found if run in (ALL_RUNS, *summary.labels)]
    if not found:
        return note("No comparisons yet." if run == ALL_RUNS else f"No comparison of {run}.", "plain")
    rows = [(path.name, date_of(path / "results.json"), summary) for path, summary in found[start : start + PAGE]]
    return render("compare_history", rows=rows, start=start, page=PAGE, total=len(found))
