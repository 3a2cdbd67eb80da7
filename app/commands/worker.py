"""hra-diffusion worker: train the waiting runs of an output folder, for ever, as a service of the system."""

import argparse
import subprocess
import sys
import threading
from pathlib import Path

from app.commands.common import OUTPUTS, add_base
from hra_diffusion.errors import UserError
from hra_diffusion.files import make_folder
from training.runs.dispatch import dispatch
from training.runs.index import Index


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=OUTPUTS, metavar="DIR", help="folder of the runs")
    parser.add_argument("--devices", nargs="+", metavar="DEVICE", help="such as cpu, mps, cuda:0 (default: every GPU, "
                        "or else the CPU)")  # fmt: skip
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    index = Index(make_folder(arguments.output).resolve())
    own = training_devices()
    names = arguments.devices or own
    if unknown := [name for name in names if name not in (*own, "cpu")]:
        raise UserError(f"there is no device {unknown[0]!r} here; use {', '.join(own)}")
    workers = [threading.Thread(target=dispatch, args=(index, name, True), daemon=True) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def training_devices() -> list[str]:
    """Return ``devices.training_devices()`` from another process: this one runs for ever and needs no torch."""
    code = "from hra_diffusion.models import devices; print(*devices.training_devices())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
