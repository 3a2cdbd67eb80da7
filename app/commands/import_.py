"""hra-diffusion import: a stranger's adapter file as one of yours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from app.commands.common import OUTPUTS, add_base, load_base, say
from hra_diffusion.errors import UserError

if TYPE_CHECKING:
    from hra_diffusion.interop import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="kohya, diffusers, LyCORIS, …, or a PEFT folder")
    parser.add_argument("--name", help="its name here (default: from the file's)")
    parser.add_argument("--trigger", default="", metavar="WORDS", help="how prompts call its subject")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be understood")
    parser.add_argument("--output", type=Path, default=OUTPUTS, metavar="DIR", help="where the adapter goes")
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    from hra_diffusion import interop  # takes seconds, and --help waits for none

    name = arguments.name or interop.name_for(arguments.file)
    place = arguments.output / f"{name}.safetensors"
    if place.exists() and not arguments.dry_run:
        raise UserError(f"{place} exists already; take another --name")
    pipe = load_base(arguments)
    if arguments.dry_run:
        report = interop.understand(pipe, arguments.file)[-1]
        say(arguments, "\n".join(report.lines), facts(report))
        return
    place, report = interop.import_adapter(pipe, arguments.file, arguments.output, name, arguments.trigger)
    say(arguments, "\n".join([*report.lines, str(place)]), facts(report) | {"file": str(place), "name": name})


def facts(report: Report) -> dict:
    """The report as plain values."""
    return {"keys": report.keys, "used": report.used, "layers": report.layers, "kinds": report.kinds,
            "ranks": report.ranks, "skipped": report.skipped}  # fmt: skip
