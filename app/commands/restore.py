"""hra-diffusion restore: restore a backup into a new output folder."""

import argparse
from pathlib import Path

from app.commands.common import OUTPUTS, Stopwatch, add_base, print_result
from training.runs import backup, catalog
from training.runs.index import Index


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("archive", type=Path, metavar="FILE.tar")
    parser.add_argument("--output", type=Path, default=OUTPUTS, metavar="DIR", help="new or empty output folder")
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    timer = Stopwatch()
    done = backup.restore(arguments.archive, arguments.output)
    runs, adapters = catalog.reindex(Index(arguments.output))
    facts = {"files": done.files, "runs": runs, "adapters": adapters, "seconds": timer.seconds}
    print_result(arguments, f"{done.files} files, {runs} runs and {adapters} adapters restored  {timer}", facts)
