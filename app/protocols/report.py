"""The report of a benchmark: one HTML file with tables, plots, controls and pictures, which needs no network."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import hra_diffusion
from app.benchmarking.machine import describe_machine, machine_facts
from app.protocols.cells import Benchmark, Cell, Result
from app.protocols.plan import BASE
from app.protocols.scoring import FIGURES
from app.protocols.summary import COSTS, Summary, conclusions, describe, format_cost, values_of
from hra_diffusion.comparison.intervals import Interval, bootstrap_interval
from hra_diffusion.comparison.plot import Point, scatter
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
        plots=[Markup(plot) for plot in (*_pareto_plots(summary), *_strength_plots(summary, results))],
        sheets=[_sheet(benchmark, subject) for subject in summary.plan.subjects],
        hashes=[result for result in results if result.sha256 and result.cell.strength == 1],
        versions=_versions(),
        data_uri=lambda image: data_uri(image, "webp", PICTURE_SIDE),
    )


def _versions() -> dict[str, str]:
    return {
        "hra-diffusion": hra_diffusion.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__,
        "transformers": transformers.__version__, "Python": platform.python_version(),
        "machine": describe_machine(machine_facts()),
    }  # fmt: skip


def fidelity(summary: Summary) -> str:
    """Return the figure of subject fidelity: the judge's, else the similarity to the photos."""
    return "subject right" if "subject right" in summary.figures else "subject"


def _pareto_plots(summary: Summary) -> list[str]:
    """Plot subject fidelity against prompt fidelity and against each cost."""
    name, plots = fidelity(summary), []
    prompt = "scene right" if name == "subject right" else "prompt"
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
    """Plot subject against prompt fidelity for every strength of each variant."""
    strengths = sorted({result.cell.strength for result in results})
    if len(strengths) < 2:
        return []
    name = fidelity(summary)
    prompt = "scene right" if name == "subject right" else "prompt"
    first = [result for result in results if result.cell.seed == summary.plan.seeds[0]]
    plots = []
    for variant in summary.plan.variants:
        points = []
        for strength in strengths:
            own = values_of(summary.plan, first, variant, strength)
            if name in own and prompt in own:
                x, y = bootstrap_interval(own[prompt]), bootstrap_interval(own[name])
                points.append(Point(f"{strength:g}", x.mean, y.mean))
        if len(points) > 1:
            plots.append(scatter(points, f"{prompt}, {variant} by strength", name))
    return plots


def _sheet(benchmark: Benchmark, subject: str) -> dict[str, Any]:
    """Return a subject's photos and the pictures of each variant at the first seed."""
    plan, prompts = benchmark.plan, benchmark.subjects[subject].prompts
    rows = {}
    for variant in (BASE, *plan.variants):
        cell = Cell(subject, variant, plan.seeds[0])
        if (benchmark.folder / cell.folder / "cell.json").is_file():
            rows[variant] = benchmark.pictures(cell)[:: plan.pictures][:PICTURES]
    return {
        "subject": subject,
        "photos": benchmark.scorer.photos(benchmark.subjects[subject]),
        "prompts": [prompt.text for prompt in prompts[:PICTURES]],
        "rows": rows,
    }
