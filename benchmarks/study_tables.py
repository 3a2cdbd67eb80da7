"""Write the generated parts of docs/which-method.md from the results: ``python -m benchmarks.study_tables``."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from app.benchmarking.machine import markdown_table
from app.protocols.plan import BASE
from app.protocols.summary import format_cost
from benchmarks.options import RESULTS
from hra_diffusion.comparison.intervals import SIGNIFICANT, Interval
from hra_diffusion.comparison.plot import Point, curves
from hra_diffusion.files import write_text

PAGE = Path(__file__).resolve().parent.parent / "docs" / "which-method.md"
PLOT = PAGE.parent / "images" / "learning-rates.svg"
NOT_MEASURED = "Not measured yet."
FIGURES = {
    "subject right": "subject right", "scene right": "scene right", "attribute right": "attribute right",
    "subject": "CLIP, subject", "prompt": "CLIP, prompt", "copies": "CLIP, copies",
}  # fmt: skip
"""Subject and prompt fidelity by the judge and by CLIP, and copies of photos, with the titles of their columns."""
JUDGED = ("subject right", "scene right")
Data = dict[str, Any]
"""Content of a ``results.json``."""


def write() -> None:
    """Write the page's generated parts and the plot."""
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))
    if data := _read(RESULTS / "rates.json"):
        write_text(PLOT, rates_plot(data))


def page(text: str, results: Path = RESULTS) -> str:
    """Return the page with its parts between ``<!-- begin NAME … -->`` and ``<!-- end NAME -->`` made anew."""
    for name, part in (("study", study_part), ("rates", rates_part), ("rank", rank_part)):
        data = _read(results / f"{name}.json")
        body = part(data) if data and data["means"] else NOT_MEASURED
        begin, end = re.search(rf"<!-- begin {name}\b.*?-->\n", text), text.index(f"<!-- end {name} -->")
        assert begin, name
        text = f"{text[: begin.end()]}\n{body}\n\n{text[end:]}"
    return text


def _read(path: Path) -> Data | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def study_part(data: Data) -> str:
    """Return the tables of the study: settings and costs, fidelities, and differences from the first variant."""
    first = next(iter(data["plan"]["variants"]))
    return "\n\n".join(
        [
            _coverage(data),
            _settings_table(data),
            _fidelity_table(data),
            f"Mean paired differences from {first} with 95 % intervals, and p-values of the sign-flip test, not "
            f"corrected for their number. **Bold** if the interval does not contain 0 and p ≤ {SIGNIFICANT:g}.",
            _difference_table(data, first),
            _controls(data),
        ]
    )


def _coverage(data: Data) -> str:
    """Return what the figures are means of, and the smallest p-value that so many subjects can show."""
    plan = data["plan"]
    lost = {(cell["subject"], cell["seed"]) for cell in data["missing"]}
    pairs = [(subject, seed) for subject in plan["subjects"] for seed in plan["seeds"] if (subject, seed) not in lost]
    subjects = len({subject for subject, _ in pairs})
    total = len(plan["subjects"]) * len(plan["seeds"])
    return (
        f"Every variant is measured for {len(pairs)} of {total} pairs of a subject and a training seed (subjects: "
        f"{subjects}). Means with 95 % bootstrap intervals over subjects, then seeds. The smallest p-value that so "
        f"many subjects can show is {2 / 2**subjects:.2g}."
    )


def _settings_table(data: Data) -> str:
    rows = []
    for label, own in _settings(data).items():
        costs = data["costs"].get(label, {})
        cells = [format_cost(name, costs.get(name)) for name in ("parameters", "seconds", "megabytes")]
        rows.append((label, own.get("options", {}).get("rank", ""), cells[0], f"{own['learning_rate']:g}", *cells[1:]))
    return markdown_table(("variant", "rank", "trainable parameters", "learning rate", "training, s", "file, MB"), rows)


def _settings(data: Data) -> Data:
    """Return the settings of each variant, at the rank of an equal budget."""
    return data["plan"]["resolved"] or data["plan"]["variants"]


def _fidelity_table(data: Data) -> str:
    rows = [
        (label, *(str(Interval(**own[name])) if name in own else "" for name in FIGURES))
        for label, own in data["means"].items()
    ]
    return markdown_table(("variant", *FIGURES.values()), rows)


def _difference_table(data: Data, first: str) -> str:
    """Return each variant's differences from the first one."""
    pairs = {(pair["figure"], pair["second"]): pair for pair in data["comparisons"] if pair["first"] == first}
    rows = [
        (label, *(_difference(pairs[name, label]) if (name, label) in pairs else "" for name in FIGURES))
        for label in data["plan"]["variants"]
        if label != first
    ]
    return markdown_table((f"variant − {first}", *FIGURES.values()), rows)


def _difference(pair: Data) -> str:
    """Return second − first, its interval and the p-value of a comparison, whose difference is first − second."""
    given = Interval(**pair["difference"])
    if given.low is None or given.high is None:
        return f"{0 - given.mean:+.3f}"  # not −0
    text = f"{0 - given.mean:+.3f} ({0 - given.high:+.3f} to {0 - given.low:+.3f}), p {pair['p_value']:.2g}"
    return f"**{text}**" if given.sign and pair["p_value"] <= SIGNIFICANT else text


def _controls(data: Data) -> str:
    """Return the ceiling, the floor and the flagged copies in a sentence."""
    controls, means = data["controls"].values(), data["means"]
    real, base = fmean(control["real"] for control in controls), means[BASE]["subject"]["mean"]
    shuffled = fmean(own["shuffled"]["mean"] for label, own in means.items() if label != BASE)
    flagged = sum(control["copied"] > control["copy_limit"] for control in controls)
    return (
        f"Controls: CLIP's similarity to the subject's photos is {real:.3f} for its other photos (the ceiling) and "
        f"{base:.3f} for the base model's pictures (the floor); that of the variants' pictures to another subject's "
        f"photos is {shuffled:.3f}. A photo saved as JPEG counts as a copy for {flagged} of {len(controls)} subjects."
    )


def rates_part(data: Data) -> str:
    """Return the table of learning rates, and a link to the plot."""
    means, by_method = data["means"], dict(_by_method(data))
    factors = sorted({factor for own in by_method.values() for factor in own})
    rows = []
    for method, own in by_method.items():
        cells = []
        for factor in factors:
            label, rate = own.get(factor, ("", 0.0))
            shares = " / ".join(f"{means[label][name]['mean']:.2f}" for name in JUDGED) if label in means else ""
            cells.append(f"{shares} ({rate:g})" if shares else "")
        rows.append((method, *cells))
    table = markdown_table(("method", *(f"× {factor:g}" for factor in factors)), rows)
    subjects, seeds = data["plan"]["subjects"], data["plan"]["seeds"]
    about = (
        f"Subjects: {', '.join(subjects)}; training seeds: {', '.join(map(str, seeds))}. Subject right / scene right "
        "(learning rate), by multiples of the preset's learning rate at rank 16. The plot names each method at its "
        "highest rate."
    )
    return f"{about}\n\n{table}\n\n![Right subjects against right scenes by learning rate](images/{PLOT.name})"


def rank_part(data: Data) -> str:
    """Return the table of the study of ranks."""
    means = data["means"]
    rows = [
        (own["method"], own["options"]["rank"], f"{own['learning_rate']:g}",
         *(f"{means[label][name]['mean']:.2f}" for name in JUDGED))
        for label, own in _settings(data).items()
        if label in means
    ]  # fmt: skip
    return markdown_table(("method", "rank", "learning rate", *JUDGED), rows)


def rates_plot(data: Data) -> str:
    """Return right subjects against right scenes as an SVG file, a curve per method, named at its highest rate."""
    series = []
    for method, own in _by_method(data):
        known = [data["means"][label] for _, (label, _) in sorted(own.items()) if label in data["means"]]
        labels = [*[""] * (len(known) - 1), method]
        points = ([found[name]["mean"] for name in reversed(JUDGED)] for found in known)
        series.append([Point(label, *point) for label, point in zip(labels, points, strict=True)])
    drawn = curves(series, "scene right", "subject right")
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" color="#777" ', 1)


def _by_method(data: Data) -> Iterator[tuple[str, Mapping[float, tuple[str, float]]]]:
    """Yield each method with its labels and learning rates by factor."""
    variants = _settings(data)
    for method in dict.fromkeys(own["method"] for own in variants.values()):
        rates = {label: own["learning_rate"] for label, own in variants.items() if own["method"] == method}
        yield method, {rate / rates[method]: (label, rate) for label, rate in rates.items()}


if __name__ == "__main__":
    write()
