"""The studies of methods, learning rates and ranks on toybox: commands, results, and how an interrupted one continues.

    python -m benchmarks.study command study --seeds 0 --output outputs/study-0
    python -m benchmarks.study run study --seeds 0 --output outputs/study-0 [--minutes 60]
    python -m benchmarks.study gather study outputs/study-0/benchmark/study outputs/study-1/benchmark/study

``study`` trains all methods and variants of HRA with equal parameters on six subjects; ``rates`` trains four methods
with a quarter, half, one and two times their learning rates on two, HRA with those of rank 16; ``rank`` trains two of
them at a higher rank. Seeds can be trained side by side, each with an ``--output`` of its own, and so can subjects with
the printed command.

``gather`` adds the finished cells of benchmarks to benchmarks/results/NAME.csv, one line each with its mean figures and
costs, and writes their summary, NAME.json, and the tables of docs/which-method.md. Both files have the formats of
``hra-diffusion benchmark``. ``run`` restores the cells of NAME.csv into the folder of the benchmark, runs the missing
ones, and gathers them. Pictures are not stored: while a variant of a subject and seed is missing, the base model's
pictures for this subject and seed, which others are compared with, are generated again.
"""

import argparse
import csv
import dataclasses
import io
import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from app.cli import main as hra_diffusion
from app.protocols import plan as plans
from app.protocols import summary
from app.protocols.cells import MEAN, Cell, Result, cells_of, read_results
from app.protocols.plan import BASE, Plan
from app.protocols.scoring import Scorer
from benchmarks import study_tables
from benchmarks.options import RESULTS
from hra_diffusion.evaluation.clip import Clip, default_source
from hra_diffusion.files import write_text
from hra_diffusion.models.sources import TOYBOX

EQUAL = ("--budget", "parameters")
STUDIES = {
    "study": [
        "--methods", "lora", "moslora", "hra", "hoft", "shoft", "oft", "dora", "--variants", "benchmarks/study.yaml",
        *EQUAL, "--subjects", "octopus", "robot", "hedgehog", "penguin", "fire engine", "yellow parrot",
    ],
    "rates": [
        "--methods", "lora", "hoft", "shoft", "--variants", "benchmarks/rates.yaml", *EQUAL,
        "--learning-rate-factors", "0.25", "0.5", "1", "2", "--subjects", "monkey", "pineapple",
    ],
    "rank": ["--variants", "benchmarks/rank.yaml", "--subjects", "monkey", "pineapple"],
}  # fmt: skip
"""Arguments of ``hra-diffusion benchmark toybox``."""
SIDE = 128
"""Of toybox's pictures."""


def main() -> int:
    """Print a study's command, run it, or gather its results; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("command", "run"):
        one = verbs.add_parser(verb)
        one.add_argument("name", choices=STUDIES)
        one.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
        one.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR")
        one.add_argument("--minutes", type=float, help="begin no cell after so many minutes")
    one = verbs.add_parser("gather")
    one.add_argument("name", choices=STUDIES)
    one.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="of benchmarks: OUTPUT/benchmark/NAME")
    arguments = parser.parse_args()
    if arguments.verb == "gather":
        _gather(arguments.name, arguments.folders)
        return 0
    words = command(arguments.name, arguments.seeds, arguments.output, arguments.minutes)
    if arguments.verb == "command":
        print(shlex.join(["hra-diffusion", *words]))
        return 0
    folder = arguments.output / "benchmark" / arguments.name
    restore(arguments.name, folder)
    code = hra_diffusion(words)
    if plans.read(folder):  # also after Ctrl-C
        _gather(arguments.name, [folder])
    return code


def command(name: str, seeds: Sequence[int], output: Path, minutes: float | None = None) -> list[str]:
    """Return the arguments of ``hra-diffusion`` for a study."""
    limit = [] if minutes is None else ["--minutes", f"{minutes:g}"]
    return ["benchmark", TOYBOX, *STUDIES[name], "--seeds", *map(str, seeds), "--name", name,
            "--output", str(output), *limit]  # fmt: skip


def _gather(name: str, folders: Sequence[Path]) -> None:
    gather(name, folders)
    study_tables.write()


def gather(name: str, folders: Sequence[Path], results: Path = RESULTS) -> None:
    """Add the finished cells of benchmarks to the results of a study. The summary is of ``complete`` cells.

    Raises SystemExit for a folder without a benchmark or with one of other settings.
    """
    plan, cells = stored(name, results)
    for folder in folders:
        if (found := plans.read(folder)) is None:
            raise SystemExit(f"{folder} has no {plans.PLAN_FILE}: give OUTPUT/benchmark/NAME")
        plan = _joined(plan, found, folder)
        cells |= {result.cell: result for result in read_results(found, folder)}
    assert plan is not None
    expected = list(cells_of(plan))
    own = [cells[cell] for cell in expected if cell in cells]
    missing = {cell: "not measured" for cell in expected if cell not in cells}
    subjects = plan.load_subjects()
    scorer = Scorer(subjects, SIDE, Clip(default_source(TOYBOX)))
    controls = {label: scorer.control(subject) for label, subject in subjects.items()}
    found = summary.summarize(plan, complete(plan, own), controls, missing)
    write_text(results / f"{name}.csv", summary.as_csv(own))
    write_text(results / f"{name}.json", summary.as_json(found))
    print(f"{len(own)} of {len(expected)} cells", file=sys.stderr)


def stored(name: str, results: Path = RESULTS) -> tuple[Plan | None, dict[Cell, Result]]:
    """Return the stored plan and cells of a study, (None, {}) without any. The figures of a cell are their means."""
    file = results / f"{name}.json"
    if not file.exists():
        return None, {}
    plan = Plan.model_validate(json.loads(file.read_text(encoding="utf-8"))["plan"])
    return plan, {result.cell: result for result in read_cells(results / f"{name}.csv")}


def read_cells(file: Path) -> list[Result]:
    """Read what ``summary.as_csv`` has written."""
    found = []
    for row in csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))):
        step = int(row["step"]) if row["step"] else None
        cell = Cell(row["subject"], row["variant"], int(row["seed"]), float(row["strength"]), step,
                    row["exported"] == str(True))  # fmt: skip
        figures = {key.removeprefix(MEAN): [float(row[key])] for key in row if key.startswith(MEAN) and row[key]}
        costs = {key: float(row[key]) for key in row if key in summary.COSTS and row[key]}
        found.append(Result(cell, figures, costs, row["sha256"]))
    return found


def restore(name: str, folder: Path, results: Path = RESULTS) -> None:
    """Write the stored cells of a study that its folder lacks. The base model's are only of use beside all others."""
    plan, cells = stored(name, results)
    whole = {result.cell for result in complete(plan, cells.values())} if plan else set()
    for cell, result in cells.items():
        file = folder / cell.folder / "cell.json"
        if not file.exists() and (cell.variant != BASE or cell in whole):
            write_text(file, json.dumps(dataclasses.asdict(result), indent=1))


def complete(plan: Plan, results: Iterable[Result]) -> list[Result]:
    """Return the results of the subjects and seeds for which every variant is finished."""
    by_cell: Mapping[Cell, Result] = {result.cell: result for result in results}
    labels = (BASE, *plan.variants)
    return [
        result
        for cell, result in by_cell.items()
        if all(Cell(cell.subject, label, cell.seed) in by_cell for label in labels)
    ]


def _joined(plan: Plan | None, other: Plan, folder: Path) -> Plan:
    """Return a plan with the subjects and seeds of both."""
    if plan is None:
        return other
    first, second = (json.loads(one.model_dump_json(exclude={"name", "subjects", "seeds"})) for one in (plan, other))
    if differing := [key for key in first if first[key] != second[key]]:
        raise SystemExit(f"{folder} has other settings than the results so far: {', '.join(differing)}")
    subjects = tuple(dict.fromkeys((*plan.subjects, *other.subjects)))
    return plan.model_copy(update={"subjects": subjects, "seeds": tuple(sorted({*plan.seeds, *other.seeds}))})


if __name__ == "__main__":
    sys.exit(main())
