"""Run the missing cells of a benchmark, and write its results."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.inference_session import Cancelled
from app.protocols.cells import Benchmark, Cell, Result
from app.protocols.estimate import estimate, stored
from app.protocols.plan import Plan
from hra_diffusion.errors import UserError
from hra_diffusion.files import write_text
from training.runs.progress import rough_duration


@dataclass(frozen=True)
class Step:
    """A cell that is about to begin.

    Attributes:
        number: of the missing cells, from 1.
        total: number of missing cells.
        seconds_left: until the last cell ends; None if unknown.
    """

    cell: Cell
    number: int
    total: int
    seconds_left: float | None

    def __str__(self) -> str:
        """Return the cell, its number, and the time left."""
        left = "" if self.seconds_left is None else f", about {rough_duration(self.seconds_left)} left"
        return f"{self.number} of {self.total}: {self.cell}{left}"


def run_cells(
    benchmark: Benchmark, run: Callable[[Cell], Result], begin: Callable[[Step], str], end: Callable[[str], None]
) -> dict[Cell, str]:
    """Run the missing cells with ``run``. Returns those that failed or were not begun, with the reason.

    Args:
        begin: is called before each cell; returns why no more cells should begin, or "".
        end: is called after each cell with its mean figures or why it failed.
    """
    failures, cells, results = dict[Cell, str](), benchmark.missing(), benchmark.results()
    for number, cell in enumerate(cells):
        expected = estimate(benchmark.folder, benchmark.plan, benchmark.subjects, stored(benchmark.output), results)
        left = None if expected.total is None else sum(expected.seconds[later] for later in cells[number:])
        if reason := begin(Step(cell, number + 1, len(cells), left)):
            return failures | dict.fromkeys(cells[number:], reason)
        try:
            results.append(run(cell))
            end(_means(results[-1]))
        except Cancelled:
            raise
        except UserError as error:
            failures[cell] = str(error)
            end(f"failed: {error}")
    return failures


def _means(result: Result) -> str:
    """Return the means of a cell's figures."""
    means = {name: sum(values) / len(values) for name, values in result.figures.items() if values}
    return ", ".join(f"{name} {value:.2f}" for name, value in means.items())


def write_results(benchmark: Benchmark, failures: dict[Cell, str]) -> tuple[str, dict[str, Any]]:
    """Write the tables and the report; return the table as text and the content of ``results.json``.

    Raises UserError if no cell has a result.
    """
    from app.protocols import report, summary

    results, scorer = benchmark.results(), benchmark.scorer
    if not results:
        raise UserError("no cell has a result: " + next(iter(failures.values()), "nothing was run"))
    controls = {name: scorer.control(subject) for name, subject in benchmark.subjects.items()} if scorer.clip else {}
    found = summary.summarize(benchmark.plan, results, controls, failures)
    table = summary.markdown(found)
    texts = {
        "results.md": table,
        "results.json": summary.as_json(found),
        "results.csv": summary.as_csv(results),
        "report.html": report.render(benchmark, replace(found, plan=_without_folders(found.plan)), results),
    }
    for name, text in texts.items():
        write_text(benchmark.folder / name, text)
    return table, json.loads(texts["results.json"])


def _without_folders(plan: Plan) -> Plan:
    """Return the plan for whoever gets the report: files without the folders of this machine."""

    def name(source: str) -> str:
        return Path(source).name if Path(source).is_absolute() else source

    def bare(settings: dict[str, Any]) -> dict[str, Any]:
        boxes = {Path(path).name: box for path, box in settings.get("boxes", {}).items()}
        named = {"base": name(settings["base"])} if "base" in settings else {}
        return settings | named | ({"boxes": boxes} if boxes else {})

    return plan.model_copy(update={
        "photos": tuple(Path(photo.name) for photo in plan.photos), "data": plan.data and Path(plan.data.name),
        "sources": {metric: name(source) for metric, source in plan.sources.items()},
        "clip": plan.clip and name(plan.clip),
        "base": bare(plan.base), "variants": {label: bare(changes) for label, changes in plan.variants.items()},
    })  # fmt: skip
