"""hra-diffusion reindex: make the index of an output folder anew from its files."""

import argparse
from pathlib import Path

from app.commands.common import OUTPUTS, Stopwatch, add_base, print_result
from training.runs import catalog
from training.runs.index import Index


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=OUTPUTS, metavar="DIR", help="folder of the runs")
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    timer = Stopwatch()
    runs, adapters = catalog.reindex(Index(arguments.output))
    facts = {"runs": runs, "adapters": adapters, "seconds": timer.seconds}
    print_result(arguments, f"{runs} runs and {adapters} adapters in {timer}", facts)
