"""Which settings suit each method on toybox: a small sweep, scored by the judge as in benchmarks.subjects.

    python -m benchmarks.sweep --sprites DIR

Every run trains an adapter on a subject with the Balanced preset and one change; the judge counts the images of its 25
prompts that show the subject, and those that show the scene. The learning rate is swept first, at rank 16. Candidates
are the rates that keep the scene in 85 % of the images and whose share of the subject is within 5 % of the best (a
smaller difference is noise); the candidate that keeps the scene best is chosen. If no rate reaches 85 %, the one that
keeps the scene best is chosen. At the chosen rate half and twice the rank are measured and, on the first subject, HRA's
λ and the Quick preset. The subjects are three of the ten of benchmarks.subjects, with the same photos and another seed.
An interrupted sweep continues.
"""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from app.benchmarking.machine import markdown_table
from app.benchmarking.timing import median_with_range
from benchmarks.options import RESULTS
from benchmarks.subject_results import COLUMNS, Case, Results, Row, describe_machines, run_missing, shares
from benchmarks.subject_runs import make_parser, set_up
from hra_diffusion.adapters import registry
from hra_diffusion.adapters.methods import COMPARED
from hra_diffusion.files import write_text

SUBJECTS = ("monkey", "t rex", "pineapple")
SEED, RANK = 7, 16
TOLERANCE = 0.05
"""Largest difference of two shares that counts as noise."""
RATES = {"low_rank": (1e-3, 2e-3), "reflections": (0.7e-3, 1e-3, 1.4e-3)}


def main() -> None:
    """Run the missing cases and write the tables."""
    parser = make_parser(__doc__, RESULTS / "sweep.json")
    parser.add_argument("--methods", nargs="+", choices=registry.method_names(), default=list(COMPARED), metavar="NAME")
    args = parser.parse_args()
    facts, runner = set_up(args)
    facts["presets"] = {name: without_swept_fields(preset) for name, preset in facts["presets"].items()}
    swept = [
        change(method, subject, learning_rate=rate)
        for method in args.methods
        for rate in rates(method)
        for subject in SUBJECTS
    ]
    results = run_missing(args.output, facts, swept, runner.measure)
    write_tables(args.output, results)
    varied = [case for method in args.methods for case in variations(method, best_rate(results["rows"], method))]
    write_tables(args.output, run_missing(args.output, facts, varied, runner.measure))


def without_swept_fields(preset: dict[str, Any]) -> dict[str, Any]:
    """Return a preset without the fields that the sweep sets, so that new presets don't invalidate its results."""
    return {key: value for key, value in preset.items() if key not in ("learning_rate", "options")}


def change(method: str, subject: str, **changes: Any) -> Case:
    """Return a case with changes to the Balanced preset, at RANK by default."""
    changes["options"] = {"rank": RANK} | changes.get("options", {})
    return Case(subject, method, SEED, json.dumps(changes, sort_keys=True))


def rates(method: str) -> tuple[float, ...]:
    """Return the learning rates to try; reflections rotate and low-rank updates add, so their scales differ."""
    return RATES["low_rank" if "alpha" in registry.get_method(method).config.model_fields else "reflections"]


def variations(method: str, rate: float) -> list[Case]:
    """Return cases with half and twice the rank, the Quick preset and other values of HRA's λ, at a learning rate."""
    ranks: list[dict[str, Any]] = [{"options": {"rank": rank}} for rank in (RANK // 2, RANK * 2)]
    others: list[dict[str, Any]] = [{"preset": "quick"}]
    if method == "hra":
        others += [{"options": {"orthogonality": value}} for value in (1e-3, float("inf"))]
    tried = [*product(SUBJECTS, ranks), *product(SUBJECTS[:1], others)]
    return [change(method, subject, learning_rate=rate, **one) for subject, one in tried]


def best_rate(rows: Sequence[Row], method: str) -> float:
    """Choose the learning rate as the module's docstring describes."""
    figures = {}
    for rate in rates(method):
        own = [shares(row) for row in rows if is_swept(Case.of(row), method, rate)]
        figures[rate] = {
            column: fmean(share[column] or 0.0 for share in own) for column in ("subject right", "scene right")
        }
    kept = [rate for rate, share in figures.items() if share["scene right"] >= (COLUMNS["scene right"] or 0)]
    most = max((figures[rate]["subject right"] for rate in kept), default=0.0)
    candidates = [rate for rate in kept if figures[rate]["subject right"] >= most - TOLERANCE] or list(figures)
    return max(candidates, key=lambda rate: (figures[rate]["scene right"], figures[rate]["subject right"]))


def is_swept(case: Case, method: str, rate: float) -> bool:
    """Return whether a case changes only the learning rate, to ``rate``."""
    return case.method == method and case.settings == {"learning_rate": rate, "options": {"rank": RANK}}


def write_tables(output: Path, results: Results) -> None:
    """Print the sweep as Markdown and write it beside the results: medians and ranges, with chosen rates marked."""
    rows: list[Row] = results["rows"]
    chosen = {method: best_rate(rows, method) for method in dict.fromkeys(row["method"] for row in rows)}
    by_case: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_case.setdefault((row["method"], row["changes"]), []).append(row)
    lines = []
    for (method, _), own in by_case.items():
        case, figures = Case.of(own[0]), [shares(row) for row in own]
        cells = [
            median_with_range([share[what] or 0.0 for share in figures])
            for what in ("subject right", "scene right", "attribute right", "seconds")
        ]
        lines.append((method, case.summary, *cells, "chosen" if is_swept(case, method, chosen[method]) else ""))
    columns = ("method", "settings", "subject right", "scene right", "attribute right", "seconds", "")
    text = (
        f"Balanced, {', '.join(SUBJECTS)}. {describe_machines(results)}. "
        "Shares of the images: median (minimum to maximum) over the subjects.\n\n"
        + markdown_table(columns, lines)
        + "\n"
    )
    write_text(output.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
