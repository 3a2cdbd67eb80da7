"""hra-diffusion import: another program's adapter as one of this project's."""

from __future__ import annotations

import argparse
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from app.commands.common import OUTPUTS, add_base, load_base, say
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.errors import UserError
from hra_diffusion.files import WINDOWS, validated_name
from hra_diffusion.models.sources import TOYBOX

if TYPE_CHECKING:
    from hra_diffusion.interop import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="kohya, diffusers, LyCORIS, …, or a PEFT folder")
    parser.add_argument("--name", help="its name here (default: from the file's)")
    parser.add_argument("--trigger", default="", metavar="WORDS", help="how prompts call its subject")
    parser.add_argument("--dry-run", action="store_true", help="only report what would be understood")
    parser.add_argument("--output", type=Path, default=OUTPUTS, metavar="DIR", help="where the adapter goes")
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    from hra_diffusion import interop  # takes seconds, and --help waits for none

    name = validated_name(arguments.name or interop.name_for(arguments.file))
    place = arguments.output / f"{name}.safetensors"
    if place.exists() and not arguments.dry_run:
        raise UserError(f"{place} exists already; take another --name")
    pipe = load_base(arguments)
    if arguments.dry_run:
        report = interop.parse_adapter(pipe, arguments.file)[-1]
        say(arguments, "\n".join(report.lines), facts(report))
        return
    place, report = interop.import_adapter(pipe, arguments.file, arguments.output, name, arguments.trigger)
    use = usage(arguments, name, place)
    text = "\n".join([*report.lines, f"written to {place}; use it with", f"  {use}"])
    say(arguments, text, facts(report) | {"file": str(place), "name": name, "use": use})


def usage(arguments: argparse.Namespace, name: str, place: Path) -> str:
    """The command that draws with the imported adapter, on the base it was imported for."""
    adapter = name if arguments.output == OUTPUTS else str(place)
    base = [] if arguments.base == TOYBOX else ["--base", arguments.base]
    if arguments.prediction_type:
        base += ["--prediction-type", arguments.prediction_type]
    if arguments.rescale_zero_snr is not None:
        base += ["--rescale-zero-snr" if arguments.rescale_zero_snr else "--no-rescale-zero-snr"]
    trigger = read_info(place).trigger
    prompt = f"a photo of {trigger}" if trigger else "a photo"
    command = ["hra-diffusion", "generate", "--adapter", adapter, *base, "--prompt", prompt]
    return subprocess.list2cmdline(command) if WINDOWS else shlex.join(command)


def facts(report: Report) -> dict:
    """The report as plain values."""
    return {"keys": report.keys, "used": report.used, "layers": report.layers, "kinds": report.kinds,
            "ranks": report.ranks, "skipped": report.skipped}  # fmt: skip
