"""Summaries of a benchmark's results: means with intervals, paired tests, controls, as CSV, JSON and Markdown."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from app.benchmarking.machine import markdown_table
from app.protocols.cells import Cell, Result, facts
from app.protocols.plan import BASE, Plan
from app.protocols.released import METRICS, RELEASED, SCORINGS, best_of_checkpoints
from app.protocols.scoring import FIGURES, Control
from hra_diffusion.comparison.intervals import (
    SIGNIFICANT,
    Interval,
    Values,
    bootstrap_interval,
    clear_winner,
    differences,
    sign_flip_test,
)

COSTS = {"seconds": "training, s", "memory": "peak memory, GiB", "parameters": "parameters", "megabytes": "file, MB",
         "seconds per picture": "a picture, s"}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Two variants in one figure: the interval of the paired differences and the p-value of the sign-flip test."""

    figure: str
    first: str
    second: str
    difference: Interval
    p_value: float


@dataclass(frozen=True)
class ScoredAs:
    """A variant's intervals under one of ``SCORINGS``, in the order of ``METRICS``; None where not measured."""

    variant: str
    scoring: str
    values: list[Interval | None]


@dataclass(frozen=True)
class Summary:
    """The results of a benchmark.

    Attributes:
        means: interval by variant and figure; the base model is the variant "base".
        costs: mean cost by variant.
        winners: the variant that is clearly the best in a figure, or None.
        comparisons: every pair of variants in the figures of quality.
        controls: by subject.
        scored_as: every variant as corrected and as released, if the released figures are measured.
        missing: cells without a result, with the reason if one is known.
    """

    plan: Plan
    means: dict[str, dict[str, Interval]]
    costs: dict[str, dict[str, float]]
    winners: dict[str, str | None]
    comparisons: list[Comparison]
    controls: dict[str, Control]
    missing: dict[Cell, str]
    scored_as: list[ScoredAs]

    @property
    def figures(self) -> list[str]:
        """The measured figures, in the order of FIGURES."""
        return [name for name in FIGURES if any(name in own for own in self.means.values())]


def summarize(plan: Plan, results: Sequence[Result], controls: dict[str, Control], missing: dict[Cell, str]) -> Summary:
    """Summarize finished trained cells. Variants are compared on the cells that all of them have."""
    by_variant = {variant: values_of(plan, results, variant) for variant in (BASE, *plan.variants)}
    by_variant = {variant: values for variant, values in by_variant.items() if values}
    trained = [variant for variant in by_variant if variant != BASE]
    winners: dict[str, str | None] = {}
    comparisons = []
    for name, figure in FIGURES.items():
        own = {variant: by_variant[variant][name] for variant in trained if name in by_variant[variant]}
        if figure.larger_is_better is None or len(own) < 2:
            continue
        common = _common(own)
        winners[name] = clear_winner(common, figure.larger_is_better) if next(iter(common.values())) else None
        comparisons += _pairs(name, common)
    means = {
        variant: {name: bootstrap_interval(values) for name, values in figures.items()}
        for variant, figures in by_variant.items()
    }
    costs = {variant: _costs([r for r in results if r.cell == Cell(r.cell.subject, variant, r.cell.seed)])
             for variant in by_variant}  # fmt: skip
    return Summary(plan, means, costs, winners, comparisons, controls, missing, scored_as(plan, results))


def values_of(plan: Plan, results: Sequence[Result], variant: str, **variation: Any) -> dict[str, Values]:
    """Return a variant's means over the pictures of each unit, by figure and unit, in the order of the seeds.

    The units are the subjects or, in a benchmark of one subject, the prompts. ``variation`` are fields of the cells,
    none for the trained ones.
    """
    found: dict[str, dict[str, list[float]]] = {}
    cells = [r for r in results if r.cell == Cell(r.cell.subject, variant, r.cell.seed, **variation)]
    for result in sorted(cells, key=lambda result: result.cell.seed):
        for name, values in result.figures.items():
            for unit, own in _by_unit(plan, result.cell, name, values).items():
                found.setdefault(name, {}).setdefault(unit, []).append(fmean(own))
    return dict(found)


def _by_unit(plan: Plan, cell: Cell, figure: str, values: Sequence[float]) -> dict[str, list[float]]:
    """Group a cell's values of a figure by unit."""
    if len(plan.subjects) > 1:
        return {cell.subject: list(values)}
    pictures = 1 if figure in FIGURES and FIGURES[figure].per_prompt else plan.pictures
    found: dict[str, list[float]] = {}
    for number, value in enumerate(values):
        found.setdefault(f"prompt {number // pictures}", []).append(value)
    return found


def scored_as(plan: Plan, results: Sequence[Result]) -> list[ScoredAs]:
    """Return every variant's figures under each of ``SCORINGS``; none if no cell has the released figures.

    Without checkpoints there is none to choose.
    """
    measured = [result for result in results if result.figures.keys() >= set(RELEASED)]
    trained = [result for result in measured if result.cell == result.cell.trained]
    best = [replace(result, figures=_best_of_checkpoints(plan, result, measured)) for result in trained]
    rows = []
    for variant in (BASE, *plan.variants) if trained else ():
        for scoring in SCORINGS if plan.checkpoints else SCORINGS[:-1]:
            own = values_of(plan, best if scoring.best else trained, variant)
            values = [bootstrap_interval(own[name]) if name in own else None for name in scoring.figures]
            rows.append(ScoredAs(variant, scoring.title, values))
    return rows


def _best_of_checkpoints(plan: Plan, trained: Result, results: Sequence[Result]) -> dict[str, list[float]]:
    """Return the released figures of a trained cell's best checkpoints, the finished adapter among them."""
    steps = {r.cell.step: r for r in results if r.cell.trained == trained.cell and r.cell.step is not None}
    candidates = [*(steps[step].figures for step in sorted(steps)), trained.figures]
    return best_of_checkpoints(candidates, plan.pictures)


def _common(values: dict[str, Values]) -> dict[str, Values]:
    """Keep the subjects and the first seeds that all variants have."""
    subjects = set.intersection(*(set(own) for own in values.values()))
    seeds = {subject: min(len(own[subject]) for own in values.values()) for subject in subjects}
    first = next(iter(values.values()))
    return {
        variant: {subject: own[subject][: seeds[subject]] for subject in first if subject in subjects}
        for variant, own in values.items()
    }


def _pairs(figure: str, values: dict[str, Values]) -> list[Comparison]:
    names = list(values)
    found = []
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            if gains := differences(values[first], values[second]):
                interval = bootstrap_interval(gains)
                found.append(Comparison(figure, first, second, interval, sign_flip_test(gains)))
    return found


def _costs(results: Sequence[Result]) -> dict[str, float]:
    """Return mean costs over the cells that have them."""
    found = {name: [r.costs[name] for r in results if name in r.costs] for name in COSTS}
    return {name: fmean(values) for name, values in found.items() if values}


def conclusions(summary: Summary) -> list[str]:
    """Return a sentence for each figure: the best variant, or that none is clearly the best."""
    sentences = []
    for name, winner in summary.winners.items():
        if winner:
            sentences.append(f"{name}: {winner} is clearly the best ({summary.means[winner][name]}).")
        else:
            sentences.append(f"{name}: no variant is clearly the best.")
    subjects = len(summary.plan.subjects)
    if subjects > 1 and (smallest := 2 / 2**subjects) > SIGNIFICANT:
        sentences.append(
            f"{subjects} subjects can show no clear difference: the smallest possible p-value is {smallest:.2f}."
        )
    return sentences


def markdown(summary: Summary) -> str:
    """Return the table of means and costs, the conclusions and the controls as Markdown."""
    figures = summary.figures
    costs = [name for name in COSTS if any(name in own for own in summary.costs.values())]
    rows = [
        (variant, *(str(own[name]) if name in own else "" for name in figures))
        for variant, own in summary.means.items()
    ]
    cost_rows = [
        (variant, *(format_cost(name, own.get(name)) for name in costs))
        for variant, own in summary.costs.items()
        if own
    ]
    parts = [
        describe(summary.plan),
        markdown_table(("variant", *figures), rows),
        "\n".join(f"- {sentence}" for sentence in conclusions(summary)),
        markdown_table(("variant", *(COSTS[name] for name in costs)), cost_rows),
        _scored_as_table(summary),
        _controls_table(summary),
        _missing_text(summary),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def describe(plan: Plan) -> str:
    """Return what was compared, in two sentences."""
    prompts = f"{plan.prompts} prompts" if plan.prompts else "all prompts"
    seeds = "1 training seed" if len(plan.seeds) == 1 else f"{len(plan.seeds)} training seeds"
    budget = {"steps": "the steps of their presets", "parameters": "equal trainable parameters",
              "seconds": "equal training time"}[plan.budget]  # fmt: skip
    return (
        f"Protocol {plan.protocol}: {len(plan.subjects)} subjects × {seeds}, {prompts} × {plan.pictures} pictures, "
        f"with {budget}. Mean (95 % interval over {'prompts' if len(plan.subjects) == 1 else 'subjects'} and seeds)."
    )


def _scored_as_table(summary: Summary) -> str:
    rows = [
        (row.variant, row.scoring, *("" if value is None else str(value) for value in row.values))
        for row in summary.scored_as
    ]
    return markdown_table(("variant", "scoring", *METRICS), rows) if rows else ""


def _controls_table(summary: Summary) -> str:
    rows = [
        (subject, _number(control.real), _number(control.copy_limit), _number(control.copied))
        for subject, control in summary.controls.items()
    ]
    columns = ("control: similarity of", "a photo to the others", "the two nearest photos", "a copied photo")
    return markdown_table(columns, rows) if rows else ""


def _missing_text(summary: Summary) -> str:
    """Return a list of the cells without a result."""
    lines = [f"- {cell}: {reason}" for cell, reason in summary.missing.items()]
    return "\n".join(["Missing:", "", *lines]) if lines else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def format_cost(name: str, value: float | None) -> str:
    """Format a cost with three digits, the number of parameters in full."""
    if value is None:
        return ""
    return f"{value:,.0f}" if name == "parameters" else f"{value:.3g}"


def as_json(summary: Summary) -> str:
    """Return the summary as JSON."""
    values: dict[str, Any] = {
        "plan": json.loads(summary.plan.model_dump_json()),
        "means": {
            variant: {name: dataclasses.asdict(interval) for name, interval in own.items()}
            for variant, own in summary.means.items()
        },
        "costs": summary.costs,
        "winners": summary.winners,
        "comparisons": [dataclasses.asdict(comparison) for comparison in summary.comparisons],
        "controls": {subject: dataclasses.asdict(control) for subject, control in summary.controls.items()},
        "scored_as": [dataclasses.asdict(row) for row in summary.scored_as],
        "missing": [{**dataclasses.asdict(cell), "reason": reason} for cell, reason in summary.missing.items()],
    }
    return json.dumps(values, indent=1, ensure_ascii=False)


def as_csv(results: Sequence[Result]) -> str:
    """Return one line per cell with the means of its figures and its costs."""
    rows = [facts(result) for result in results]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
