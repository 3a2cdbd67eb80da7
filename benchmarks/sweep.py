"""Which settings suit each method on toybox: a small sweep, seen by the judge of benchmarks/subjects.

    python -m benchmarks.sweep --sprites DIR --judge FILE

Every run teaches a subject by the Balanced preset with something changed; the judge says how many of the pictures of
its 25 prompts show the subject, and how many the scene asked for. First the learning rate is swept at rank 8. The rate
kept shows the subject most often, of those that keep the scene in 85 %; or it keeps the scene best, where none does. At
that rate other ranks, HRA's λ and the Quick preset are then tried, on the first subject. Both subjects are among the
ten of benchmarks/subjects, taught here from the same photos under another seed. Stopped and started again, it goes on.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.subjects import COLUMNS, Case, Row, make_parser, run_missing, set_up, shares
from hra_diffusion import registry
from hra_diffusion.files import write_text
from training.measure import machine, markdown, spread

TRIED = ("octopus", "monkey")
SEED = 7
RATES = {"low_rank": (1e-3, 2e-3, 4e-3), "reflections": (2.5e-3, 5e-3, 1e-2)}


def main() -> None:
    """Run what is not yet there, and tell."""
    parser = make_parser(__doc__, RESULTS / "sweep.json")
    parser.add_argument("--methods", nargs="+", choices=registry.names(), default=registry.names(), metavar="NAME")
    given = parser.parse_args()
    facts, bench = set_up(given)
    swept = [
        change(method, subject, learning_rate=rate)
        for method in given.methods
        for rate in rates(method)
        for subject in TRIED
    ]
    rows = run_missing(given.output, facts, swept, bench.measure)
    write_tables(given.output, rows)
    varied = [case for method in given.methods for case in variations(method, best_rate(rows, method))]
    write_tables(given.output, run_missing(given.output, facts, varied, bench.measure))


def change(method: str, subject: str, **changes: Any) -> Case:
    """A case with something other than the Balanced preset says."""
    return Case(subject, method, SEED, json.dumps(changes, sort_keys=True))


def rates(method: str) -> tuple[float, ...]:
    """The rates to try: reflections turn by an angle, low-rank updates add; they live on different scales."""
    return RATES["low_rank" if "alpha" in registry.get(method).config.model_fields else "reflections"]


def variations(method: str, rate: float) -> list[Case]:
    """Other ranks, HRA's other forms and the Quick preset, at one rate."""
    tried: list[dict[str, Any]] = [{"options": {"rank": rank}} for rank in (4, 16)]
    if method == "hra":
        tried += [{"options": {"orthogonality": value}} for value in (1e-3, float("inf"))]
    return [change(method, TRIED[0], learning_rate=rate, **one) for one in (*tried, {"preset": "quick"})]


def best_rate(rows: Sequence[Row], method: str) -> float:
    """The rate under which the subject is seen most often, of those that keep the scene; the best scene's if none."""
    found = {}
    for rate in rates(method):
        own = [
            shares(row) for row in rows if Case.of(row) in {change(method, name, learning_rate=rate) for name in TRIED}
        ]
        found[rate] = {what: fmean(share[what] or 0.0 for share in own) for what in ("shown", "scene")}
    kept = [rate for rate, share in found.items() if share["scene"] >= (COLUMNS["scene"] or 0)]
    if not kept:
        return max(found, key=lambda rate: found[rate]["scene"])
    return max(kept, key=lambda rate: found[rate]["shown"])


def write_tables(output: Path, rows: Sequence[Row]) -> None:
    """The sweep as Markdown beside its results, and printed: means and ranges over subjects, the rates kept marked."""
    kept = {method: best_rate(rows, method) for method in dict.fromkeys(row["method"] for row in rows)}
    lines = []
    for method, changes in dict.fromkeys((row["method"], row["changes"]) for row in rows):
        own = [shares(row) for row in rows if (row["method"], row["changes"]) == (method, changes)]
        varied = json.loads(changes)
        cells = [spread([share[what] or 0.0 for share in own]) for what in ("shown", "scene", "look", "seconds")]
        lines.append((method, in_words(varied), *cells, "kept" if varied == {"learning_rate": kept[method]} else ""))
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    said = (
        f"Balanced, rank 8 where nothing else is said; {' and '.join(TRIED)}. {about}. "
        "Shares of the pictures: median (least to most) over the subjects.\n\n"
        + markdown(("method", "settings", "the subject", "the scene", "the look", "seconds", ""), lines)
        + "\n"
    )
    write_text(output.with_suffix(".md"), said)
    print(said)


def in_words(changes: dict[str, Any]) -> str:
    """Settings as a person would say them: "learning rate 0.002, rank 4"."""
    plain = {key: value for key, value in changes.items() if key != "options"} | changes.get("options", {})
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in plain.items())


if __name__ == "__main__":
    main()
