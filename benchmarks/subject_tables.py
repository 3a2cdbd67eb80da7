"""Tables of the benchmark of subjects: the methods' figures against their targets, overall and by subject."""

from collections.abc import Sequence
from statistics import fmean

from app.benchmarking.machine import markdown_table
from benchmarks.report import Target
from benchmarks.subject_results import BASE, CEILING, COLUMNS, Results, Row, describe_machines, seed_means, shares
from hra_diffusion.adapters import registry
from toybox.benchmark import PHOTOS

TITLES = (
    "method", "runs", "subject right, ≥ 0.80", "in scenes", "with attributes", "scene right, ≥ 0.85", "attribute right",
    "seconds per run, ≤ 90",
)  # fmt: skip


def report(results: Results) -> str:
    """Compare the methods with the targets, overall and by subject, as Markdown."""
    rows: list[Row] = results["rows"]
    methods = sorted({row["method"] for row in rows}, key=[*registry.method_names(), BASE, CEILING].index)
    by_method = [(method, *method_cells([row for row in rows if row["method"] == method])) for method in methods]
    by_subject = [
        (name, *(subject_cell([r for r in rows if (r["subject"], r["method"]) == (name, m)]) for m in methods))
        for name in dict.fromkeys(row["subject"] for row in rows)
    ]
    parts = [
        f"Balanced, {PHOTOS} photos, 25 prompts per run, {results['device']}. {describe_machines(results)}. "
        "Shares of the images: mean (minimum to maximum) over the seeds, each over all its runs.",
        markdown_table(TITLES, by_method),
        "By subject: shares of the images with the right subject / the right scene, over all seeds.",
        markdown_table(("subject", *methods), by_subject),
    ]
    return "\n\n".join(parts) + "\n"


def method_cells(rows: Sequence[Row]) -> list[object]:
    """Return the cells of one method: number of runs, then each figure over the seeds with its verdict."""
    trained = rows[0]["method"] not in (CEILING, BASE)
    cells: list[object] = [len(rows)]
    for column, limit in COLUMNS.items():
        values = seed_means(rows, column)
        cells.append(mean_with_verdict(values, column, limit if trained else None) if values else "")
    return cells


def mean_with_verdict(values: Sequence[float], column: str, limit: float | None) -> str:
    """Format values as mean (minimum to maximum), with the verdict if there is a limit."""
    form = ".0f" if column == "seconds" else ".2f"
    text = f"{fmean(values):{form}} ({min(values):{form}} to {max(values):{form}})"
    if limit is None:
        return text
    target = Target(column, fmean(values), limit, at_least=column != "seconds", rounds=values)
    return f"{text} {target.mark}"


def subject_cell(rows: Sequence[Row]) -> str:
    """Return the shares of images with the right subject and the right scene: "0.92 / 0.88"."""
    if not rows:
        return ""
    return " / ".join(f"{fmean(shares(row)[what] for row in rows):.2f}" for what in ("subject right", "scene right"))
