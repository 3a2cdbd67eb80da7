"""Which settings suit each method on toybox: a small sweep, scored by the judge of benchmarks/subjects.

    python -m benchmarks.sweep --sprites DIR

Every run trains a subject with the Balanced preset and one change; the judge counts how many images of its 25 prompts
show the subject and how many the scene. The learning rate is swept first, at rank 16. Among the rates that keep the
scene in 85 % of the images, those within 5 % of the best share of the subject are candidates (less is noise),
and the candidate that keeps the scene best is chosen. If no rate reaches 85 %, the one that keeps the scene best is
chosen. At the chosen rate half and twice the rank are measured and, on the first subject, HRA's λ and the Quick preset.
The subjects are three of the ten of benchmarks/subjects, with the same photos and another seed. An interrupted sweep
continues.
"""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from app.benchmarking.machine import markdown_table
from app.benchmarking.timing import median_with_range
from benchmarks.common import RESULTS
from benchmarks.subjects import COLUMNS, Case, Results, Row, machine_summary, make_parser, run_missing, set_up, shares
from hra_diffusion.adapters import registry
from hra_diffusion.files import write_text

TRIED = ("monkey", "t rex", "pineapple")
SEED, RANK = 7, 16
TOLERANCE = 0.05
"""Largest difference of two shares that counts as noise."""
RATES = {"low_rank": (1e-3, 2e-3), "reflections": (0.7e-3, 1e-3, 1.4e-3)}


def main() -> None:
    """Run the missing cases and write the tables."""
    parser = make_parser(__doc__, RESULTS / "sweep.json")
    parser.add_argument(
        "--methods", nargs="+", choices=registry.method_names(), default=registry.method_names(), metavar="NAME"
    )
    given = parser.parse_args()
    facts, bench = set_up(given)
    facts["presets"] = {name: unswept(preset) for name, preset in facts["presets"].items()}
    swept = [
        change(method, subject, learning_rate=rate)
        for method in given.methods
        for rate in rates(method)
        for subject in TRIED
    ]
    results = run_missing(given.output, facts, swept, bench.measure)
    write_tables(given.output, results)
    varied = [case for method in given.methods for case in variations(method, best_rate(results["rows"], method))]
    write_tables(given.output, run_missing(given.output, facts, varied, bench.measure))


def unswept(preset: dict[str, Any]) -> dict[str, Any]:
    """Return a preset without the fields that the sweep sets, so that new presets don't invalidate its results."""
    return {key: value for key, value in preset.items() if key not in ("learning_rate", "options")}


def change(method: str, subject: str, **changes: Any) -> Case:
    """Return a case with changes to the Balanced preset, at RANK by default."""
    changes["options"] = {"rank": RANK} | changes.get("options", {})
    return Case(subject, method, SEED, json.dumps(changes, sort_keys=True))


def rates(method: str) -> tuple[float, ...]:
    """Learning rates to try: reflections rotate, low-rank updates add, so their scales differ."""
    return RATES["low_rank" if "alpha" in registry.get_method(method).config.model_fields else "reflections"]


def variations(method: str, rate: float) -> list[Case]:
    """Half and twice the rank, the Quick preset and other values of HRA's λ, at one learning rate."""
    ranks: list[dict[str, Any]] = [{"options": {"rank": rank}} for rank in (RANK // 2, RANK * 2)]
    others: list[dict[str, Any]] = [{"preset": "quick"}]
    if method == "hra":
        others += [{"options": {"orthogonality": value}} for value in (1e-3, float("inf"))]
    tried = [*product(TRIED, ranks), *product(TRIED[:1], others)]
    return [change(method, subject, learning_rate=rate, **one) for subject, one in tried]


def best_rate(rows: Sequence[Row], method: str) -> float:
    """Choose the learning rate by the rule of the module docstring."""
    found = {}
    for rate in rates(method):
        own = [shares(row) for row in rows if is_swept(Case.of(row), method, rate)]
        found[rate] = {what: fmean(share[what] or 0.0 for share in own) for what in ("shown", "scene")}
    kept = [rate for rate, share in found.items() if share["scene"] >= (COLUMNS["scene"] or 0)]
    most = max((found[rate]["shown"] for rate in kept), default=0.0)
    counted = [rate for rate in kept if found[rate]["shown"] >= most - TOLERANCE] or list(found)
    return max(counted, key=lambda rate: (found[rate]["scene"], found[rate]["shown"]))


def is_swept(case: Case, method: str, rate: float) -> bool:
    """Whether a case changes only the learning rate, to this one."""
    return case.method == method and case.settings == {"learning_rate": rate, "options": {"rank": RANK}}


def write_tables(output: Path, results: Results) -> None:
    """Print the sweep as Markdown and write it beside the results: medians and ranges, chosen rates marked."""
    rows: list[Row] = results["rows"]
    kept = {method: best_rate(rows, method) for method in dict.fromkeys(row["method"] for row in rows)}
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["method"], row["changes"]), []).append(row)
    lines = []
    for (method, _), own in found.items():
        case, figures = Case.of(own[0]), [shares(row) for row in own]
        cells = [
            median_with_range([share[what] or 0.0 for share in figures])
            for what in ("shown", "scene", "look", "seconds")
        ]
        lines.append((method, case.summary, *cells, "kept" if is_swept(case, method, kept[method]) else ""))
    said = (
        f"Balanced, {', '.join(TRIED)}. {machine_summary(results)}. "
        "Shares of the pictures: median (least to most) over the subjects.\n\n"
        + markdown_table(("method", "settings", "the subject", "the scene", "the look", "seconds", ""), lines)
        + "\n"
    )
    write_text(output.with_suffix(".md"), said)
    print(said)


if __name__ == "__main__":
    main()
