"""Which settings suit each method on toybox: a small sweep, seen by the judge of benchmarks/subjects.

    python -m benchmarks.sweep --sprites DIR

Every run teaches a subject by the Balanced preset with something changed; the judge says how many of the pictures of
its 25 prompts show the subject, and how many the scene asked for. First the learning rate is swept at rank 16. Of the
rates that keep the scene in 85 %, those count that show the subject most often, or in up to 5 % of the pictures less,
which is chance; kept is the one of these that keeps the scene best. Where none does in 85 %, it is the one that does
best. At that rate half the rank and twice the rank are then tried, and on the first subject HRA's λ and the Quick
preset. The subjects are among the ten of benchmarks/subjects, taught here from the same photos under another seed.
Stopped and started again, it goes on.
"""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.subjects import COLUMNS, Case, Results, Row, machines, make_parser, run_missing, set_up, shares
from hra_diffusion.adapters import registry
from hra_diffusion.files import write_text
from training.memory.measure import markdown, spread

TRIED = ("monkey", "t rex", "pineapple")
SEED, RANK = 7, 16
CHANCE = 0.05
"""So far apart may two shares of the pictures be without telling two rates apart."""
RATES = {"low_rank": (1e-3, 2e-3), "reflections": (0.7e-3, 1e-3, 1.4e-3)}


def main() -> None:
    """Run what is not yet there, and tell."""
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
    """A preset without what the sweep sets itself: its results outlive their being taken into the presets."""
    return {key: value for key, value in preset.items() if key not in ("learning_rate", "options")}


def change(method: str, subject: str, **changes: Any) -> Case:
    """A case with something other than the Balanced preset says, at RANK unless it says another."""
    changes["options"] = {"rank": RANK} | changes.get("options", {})
    return Case(subject, method, SEED, json.dumps(changes, sort_keys=True))


def rates(method: str) -> tuple[float, ...]:
    """The rates to try: reflections turn by an angle, low-rank updates add; they live on different scales."""
    return RATES["low_rank" if "alpha" in registry.get_method(method).config.model_fields else "reflections"]


def variations(method: str, rate: float) -> list[Case]:
    """Half and twice the rank, the Quick preset and HRA's other forms, at one rate."""
    ranks: list[dict[str, Any]] = [{"options": {"rank": rank}} for rank in (RANK // 2, RANK * 2)]
    others: list[dict[str, Any]] = [{"preset": "quick"}]
    if method == "hra":
        others += [{"options": {"orthogonality": value}} for value in (1e-3, float("inf"))]
    tried = [*product(TRIED, ranks), *product(TRIED[:1], others)]
    return [change(method, subject, learning_rate=rate, **one) for subject, one in tried]


def best_rate(rows: Sequence[Row], method: str) -> float:
    """The rate that shows the subject as often as any that keeps the scene, and keeps it best."""
    found = {}
    for rate in rates(method):
        own = [shares(row) for row in rows if is_swept(Case.of(row), method, rate)]
        found[rate] = {what: fmean(share[what] or 0.0 for share in own) for what in ("shown", "scene")}
    kept = [rate for rate, share in found.items() if share["scene"] >= (COLUMNS["scene"] or 0)]
    most = max((found[rate]["shown"] for rate in kept), default=0.0)
    counted = [rate for rate in kept if found[rate]["shown"] >= most - CHANCE] or list(found)
    return max(counted, key=lambda rate: (found[rate]["scene"], found[rate]["shown"]))


def is_swept(case: Case, method: str, rate: float) -> bool:
    """Whether it is of this method's sweep, at this rate, with nothing else changed."""
    return case.method == method and case.settings == {"learning_rate": rate, "options": {"rank": RANK}}


def write_tables(output: Path, results: Results) -> None:
    """The sweep as Markdown beside its results, and printed: medians and ranges over subjects, rates kept marked."""
    rows: list[Row] = results["rows"]
    kept = {method: best_rate(rows, method) for method in dict.fromkeys(row["method"] for row in rows)}
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["method"], row["changes"]), []).append(row)
    lines = []
    for (method, _), own in found.items():
        case, told = Case.of(own[0]), [shares(row) for row in own]
        cells = [spread([share[what] or 0.0 for share in told]) for what in ("shown", "scene", "look", "seconds")]
        lines.append((method, case.in_words, *cells, "kept" if is_swept(case, method, kept[method]) else ""))
    said = (
        f"Balanced, {', '.join(TRIED)}. {machines(results)}. "
        "Shares of the pictures: median (least to most) over the subjects.\n\n"
        + markdown(("method", "settings", "the subject", "the scene", "the look", "seconds", ""), lines)
        + "\n"
    )
    write_text(output.with_suffix(".md"), said)
    print(said)


if __name__ == "__main__":
    main()
