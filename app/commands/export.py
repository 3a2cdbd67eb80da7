"""hra-diffusion export: an adapter as a file that other tools load."""

import argparse
from pathlib import Path

from app.commands.common import OUTPUTS, Stopwatch, add_base, load_adapters, load_base, roots, say

FORMATS = {
    "kohya": "one file for most programs", "diffusers": "the library's own", "peft": "a folder",
    "merged": "the whole base with the adapter in it",
}  # fmt: skip
PLACE = "where it goes; merged into a name with .safetensors is one file in the original layout (default: in "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="NAME|FILE[:STRENGTH]", help="a strength is written as strength 1")
    parser.add_argument("--format", required=True, choices=tuple(FORMATS),
                        help="; ".join(f"{name}: {what}" for name, what in FORMATS.items()))  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="PATH", help=f"{PLACE}{OUTPUTS / 'exports'})")
    parser.add_argument(
        "--lora-rank", type=int, metavar="N", help="a plain LoRA of this rank, cut if need be; its error is told"
    )
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    from hra_diffusion import interop  # takes seconds, and --help waits for none
    from hra_diffusion.interop import compatibility
    from training.runs import run_folder

    pipe, watch = load_base(arguments), Stopwatch()
    ((file, info, strength),) = load_adapters(pipe, [arguments.adapter], roots(None))
    path = arguments.output or default_path(info.name, arguments.format)
    sample = next(iter(run_folder.samples_of(file)), None)
    done = interop.export(pipe, info.name, arguments.format, path, strength, arguments.lora_rank, info, sample)
    notes = compatibility.notes(pipe, info.name, done)
    lines = [f"{done.path}  {done.shape}  {watch}", "", *(f"  {line}" for line in compatibility.lines(done))]
    facts = [
        {"program": row.program, "loads": compatibility.verdict(done, row), "how": row.how}
        for row in compatibility.rows(done)
    ]
    written = {"file": str(done.path), "form": done.form, "rank": done.rank, "error": done.error}
    written |= {"loads": facts, "notes": notes, "seconds": watch.seconds}
    say(arguments, "\n".join([*lines, "", *notes, *compatibility.advice(info)]), written)


def default_path(name: str, format: str) -> Path:
    """Where an export goes when nothing is said."""
    return OUTPUTS / "exports" / (f"{name}.safetensors" if format == "kohya" else f"{name}-{format}")
