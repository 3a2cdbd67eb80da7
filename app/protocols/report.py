"""The report of a benchmark: one HTML file with tables, plots, controls and pictures, which needs no network."""

import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import diffusers
import torch
import transformers
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import hra_diffusion
from app.benchmarking.machine import describe_machine, machine_facts
from app.protocols.cells import Benchmark, Cell, Result
from app.protocols.plan import BASE, Plan
from app.protocols.released import METRICS
from app.protocols.scoring import FIGURES
from app.protocols.summary import COSTS, Summary, conclusions, describe, format_cost, values_of
from hra_diffusion.comparison.intervals import Interval
from hra_diffusion.comparison.plot import Point, curves, scatter
from hra_diffusion.comparison.report import data_uri

PICTURES = 6
"""Prompts of each subject whose pictures are shown."""
PICTURE_SIDE = 192
_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(benchmark: Benchmark, summary: Summary, results: Sequence[Result]) -> str:
    """Return the report as HTML."""
    return _environment.get_template("benchmark.html").render(
        summary=summary,
        base=BASE,
        description=describe(summary.plan),
        conclusions=conclusions(summary),
        figures=[FIGURES[name] for name in summary.figures],
        costs={name: title for name, title in COSTS.items() if any(name in own for own in summary.costs.values())},
        format_cost=format_cost,
        metrics=METRICS,
        plots=[
            Markup(plot)
            for plot in (
                *_pareto_plots(summary),
                *_strength_plots(summary, results),
                *_checkpoint_plots(summary, results),
            )
        ],
        sheets=[_sheet(benchmark, subject) for subject in summary.plan.subjects],
        hashes=[result for result in results if result.sha256 and result.cell == result.cell.trained],
        versions=_versions(),
        data_uri=lambda image: data_uri(image, "webp", PICTURE_SIDE),
    )


def _versions() -> dict[str, str]:
    return {
        "hra-diffusion": hra_diffusion.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__,
        "transformers": transformers.__version__, "Python": platform.python_version(),
        "machine": describe_machine(machine_facts()),
    }  # fmt: skip


def fidelities(summary: Summary) -> tuple[str, str]:
    """Return the figures of subject and prompt fidelity: the judge's, else those of CLIP."""
    return ("subject right", "scene right") if "subject right" in summary.figures else ("subject", "prompt")


def _pareto_plots(summary: Summary) -> list[str]:
    """Plot subject fidelity against prompt fidelity and against each cost."""
    (name, prompt), plots = fidelities(summary), []
    axes = {prompt: (prompt, False)} | {cost: (title, True) for cost, title in COSTS.items()}
    for figure, (title, minimize) in axes.items():
        points = []
        for variant, means in summary.means.items():
            value = means.get(figure) or summary.costs[variant].get(figure)
            if variant != BASE and name in means and value is not None:
                (x, x_error), (y, y_error) = _estimate(value), _estimate(means[name])
                points.append(Point(variant, x, y, x_error, y_error))
        if len(points) > 1:
            plots.append(scatter(points, title, name, minimize_x=minimize))
    return plots


def _estimate(value: Interval | float) -> tuple[float, float]:
    """Return a value and half the length of its interval."""
    if not isinstance(value, Interval):
        return value, 0.0
    return value.mean, 0.0 if value.low is None or value.high is None else (value.high - value.low) / 2


def _strength_plots(summary: Summary, results: Sequence[Result]) -> list[str]:
    """Plot subject against prompt fidelity for every strength of each variant, and of its exported LoRA.

    Strength 0 is the base model.
    """
    name, prompt = fidelities(summary)
    strengths = sorted({1.0, *(result.cell.strength for result in results)})
    plots = []
    for variant in summary.plan.variants if len(strengths) > 1 else ():
        own_labels = [BASE, *(f"{strength:g}" for strength in strengths)]
        lora_labels = ["", *("" if strength == 1 else f"{strength:g} as LoRA" for strength in strengths)]
        series = []
        for exported, labels in ((False, own_labels), (True, lora_labels)):
            variations = [{"strength": strength, "exported": exported and strength != 1} for strength in strengths]
            means = _means_along(summary.plan, results, variant, variations)
            points = [
                Point(label, own[prompt], own[name])
                for label, own in zip(labels, means, strict=True)
                if name in own and prompt in own
            ]
            series += [points] if points else []
        if series:
            plots.append(curves(series, f"{prompt}, {variant} by strength", name))
    return plots


def _checkpoint_plots(summary: Summary, results: Sequence[Result]) -> list[str]:
    """Plot subject and prompt fidelity of every variant by training step. Step 0 is the base model."""
    plan, plots = summary.plan, []
    for figure in fidelities(summary) if plan.checkpoints else ():
        series = []
        for variant in plan.variants:
            steps = plan.checkpoint_steps(variant)
            means = _means_along(plan, results, variant, [*({"step": step} for step in steps), {}])
            labels = [*[""] * (len(steps) + 1), variant]
            values = zip(labels, [0, *steps, plan.steps(variant)], means, strict=True)
            points = [Point(label, step, own[figure]) for label, step, own in values if figure in own]
            series += [points] if points else []
        if series:
            plots.append(curves(series, "training step", figure))
    return plots


def _means_along(
    plan: Plan, results: Sequence[Result], variant: str, variations: Sequence[dict[str, Any]]
) -> list[dict[str, float]]:
    """Return the base model's means by figure, and those of each variation of a variant.

    They are over the subjects and seeds for which all of them are finished.
    """
    done = {result.cell for result in results}
    needed = [(BASE, {}), *((variant, variation) for variation in variations)]
    complete = {
        (cell.subject, cell.seed)
        for cell in done
        if all(Cell(cell.subject, label, cell.seed, **variation) in done for label, variation in needed)
    }
    own = [result for result in results if (result.cell.subject, result.cell.seed) in complete]
    groups = [values_of(plan, own, label, **variation) for label, variation in needed]
    return [{name: fmean(map(fmean, units.values())) for name, units in group.items()} for group in groups]


def _sheet(benchmark: Benchmark, subject: str) -> dict[str, Any]:
    """Return a subject's photos and the pictures of each variant at the first seed."""
    plan, prompts = benchmark.plan, benchmark.subjects[subject].prompts
    rows = {}
    for variant in (BASE, *plan.variants):
        cell = Cell(subject, variant, plan.seeds[0])
        own = benchmark.folder / cell.folder
        if (own / "cell.json").is_file() and (own / "pictures").is_dir():  # a result may be stored without its pictures
            rows[variant] = benchmark.pictures(cell)[:: plan.pictures][:PICTURES]
    return {
        "subject": subject,
        "photos": benchmark.scorer.photos(benchmark.subjects[subject]),
        "prompts": [prompt.text for prompt in prompts[:PICTURES]],
        "rows": rows,
    }
