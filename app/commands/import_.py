"""hra-diffusion import: a stranger's adapter file as one of yours."""

import argparse
import re
from pathlib import Path

from app.commands.common import OUTPUTS, add_base, load_base, say
from hra_diffusion import interop
from hra_diffusion.errors import UserError
from hra_diffusion.files import MAX_NAME


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="kohya, diffusers, LyCORIS, …, or a PEFT folder")
    parser.add_argument("--name", help="its name here (default: from the file's)")
    parser.add_argument("--trigger", default="", metavar="WORDS", help="how prompts call its subject")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be understood")
    parser.add_argument("--output", type=Path, default=OUTPUTS, metavar="DIR", help="where the adapter goes")
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    name = arguments.name or name_for(arguments.file)
    place = arguments.output / f"{name}.safetensors"
    if place.exists() and not arguments.dry_run:
        raise UserError(f"{place} exists already; take another --name")
    pipe = load_base(arguments)
    if arguments.dry_run:
        report = interop.understand(pipe, arguments.file)[-1]
        say(arguments, describe(report), facts(report))
        return
    place, report = interop.import_adapter(pipe, arguments.file, arguments.output, name, arguments.trigger)
    say(arguments, f"{describe(report)}\n{place}", facts(report) | {"file": str(place), "name": name})


def name_for(file: Path) -> str:
    """A name made of the file's: letters, digits, - and _ stay."""
    return re.sub(r"\W+", "-", file.stem).strip("-_")[:MAX_NAME] or "imported"


def describe(report: interop.Report) -> str:
    """What was understood, what was skipped and why, for reading."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.kinds.items())
    places = ", ".join(f"{count} layers of the {component}" for component, count in report.layers.items())
    ranks = ", ".join(f"{rank} ({count})" for rank, count in sorted(report.ranks.items()))
    lines = [f"{report.used} of {report.keys} keys understood: {kinds}; {places}; rank {ranks}"]
    for reason, keys in report.skipped.items():
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        lines.append(f"skipped, {reason}: {keys[0]}{more}")
    return "\n".join(lines)


def facts(report: interop.Report) -> dict:
    """The report as plain values."""
    return {"keys": report.keys, "used": report.used, "layers": report.layers, "kinds": report.kinds,
            "ranks": report.ranks, "skipped": report.skipped}  # fmt: skip
