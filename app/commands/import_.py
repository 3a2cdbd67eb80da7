"""hra-diffusion import: import an adapter file from another program."""

from __future__ import annotations

import argparse
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from app.commands.common import OUTPUTS, add_base, load_base, print_result
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.errors import UserError
from hra_diffusion.files import WINDOWS
from hra_diffusion.models.sources import TOYBOX
from hra_diffusion.names import validated_name

if TYPE_CHECKING:
    from hra_diffusion.interop import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a kohya, diffusers or LyCORIS file, or a PEFT folder")
    parser.add_argument("--name", help="name of the imported adapter (default: from the file name)")
    parser.add_argument("--trigger", default="", metavar="WORDS", help="trigger words for prompts")
    parser.add_argument(
        "--embedding", type=Path, nargs="+", default=[], metavar="FILE", help="textual inversion files trained with it"
    )
    parser.add_argument("--dry-run", action="store_true", help="only report which keys are recognized")
    parser.add_argument("--output", type=Path, default=OUTPUTS, metavar="DIR", help="output folder (default outputs)")
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    from hra_diffusion import interop  # slow; not needed for --help

    name = validated_name(arguments.name or interop.name_for(arguments.file))
    path = arguments.output / f"{name}.safetensors"
    if path.exists() and not arguments.dry_run:
        raise UserError(f"{path} exists already; choose another --name")
    pipe = load_base(arguments)
    if arguments.dry_run:
        report = interop.parse_adapter(pipe, arguments.file, arguments.embedding)[-1]
        print_result(arguments, "\n".join(report.lines), facts(report))
        return
    path, report = interop.import_adapter(
        pipe, arguments.file, arguments.output, name, arguments.trigger, arguments.embedding
    )
    use = usage(arguments, name, path)
    text = "\n".join([*report.lines, f"written to {path}; generate with", f"  {use}"])
    print_result(arguments, text, facts(report) | {"file": str(path), "name": name, "use": use})


def usage(arguments: argparse.Namespace, name: str, path: Path) -> str:
    """Return a command that generates with the imported adapter on the same base model."""
    adapter = name if arguments.output == OUTPUTS else str(path)
    base = [] if arguments.base == TOYBOX else ["--base", arguments.base]
    for flag, value in (("--base-revision", arguments.base_revision), ("--base-variant", arguments.base_variant)):
        base += [flag, value] if value else []
    if arguments.prediction_type:
        base += ["--prediction-type", arguments.prediction_type]
    if arguments.rescale_zero_snr is not None:
        base += ["--rescale-zero-snr" if arguments.rescale_zero_snr else "--no-rescale-zero-snr"]
    trigger = read_info(path).trigger
    prompt = f"a photo of {trigger}" if trigger else "a photo"
    command = ["hra-diffusion", "generate", "--adapter", adapter, *base, "--prompt", prompt]
    return subprocess.list2cmdline(command) if WINDOWS else shlex.join(command)


def facts(report: Report) -> dict:
    """Return the report as JSON values."""
    return {"keys": report.keys, "used": report.used, "layers": report.layers, "kinds": report.kinds,
            "ranks": report.ranks, "skipped": report.skipped}  # fmt: skip
