"""hra-diffusion backup: write all runs, adapters, photos and images of an output folder into one file."""

import argparse
from datetime import datetime
from pathlib import Path

from app.commands.common import OUTPUTS, Stopwatch, add_base, print_result
from training.runs import backup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("archive", type=Path, nargs="?", metavar="FILE.tar", help="default: NAME-of-folder-DATE.tar")
    parser.add_argument("--output", type=Path, default=OUTPUTS, metavar="DIR", help="output folder to back up")
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    default = Path(f"{arguments.output.resolve().name}-{datetime.now():%Y-%m-%d-%H%M%S}.tar")
    archive, timer = arguments.archive or default, Stopwatch()
    done = backup.write(arguments.output, archive)
    facts = {"archive": str(archive), "files": done.files, "bytes": done.bytes, "seconds": timer.seconds}
    print_result(arguments, f"{archive}: {done.files} files, {done.bytes / 1e6:.1f} MB  {timer}", facts)
