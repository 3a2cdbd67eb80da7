"""hra-diffusion export: export an adapter to a format that other programs load."""

import argparse
from pathlib import Path

from app.commands.common import OUTPUTS, Stopwatch, adapter_folders, add_base, load_adapters, load_base, print_result

FORMATS = {
    "kohya": "one file, for most programs", "diffusers": "one file, for diffusers", "peft": "a folder, for PEFT",
    "merged": "the base model with the adapter merged in",
}  # fmt: skip
OUTPUT_HELP = "file or folder; merged writes one file in the original layout for PATH.safetensors (default: in "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="NAME|FILE[:STRENGTH]", help="the strength is built into the weights")
    parser.add_argument("--format", required=True, choices=tuple(FORMATS),
                        help="; ".join(f"{name}: {what}" for name, what in FORMATS.items()))  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="PATH", help=f"{OUTPUT_HELP}{OUTPUTS / 'exports'})")
    parser.add_argument(
        "--lora-rank", type=int, metavar="N", help="write a LoRA of this rank, truncated if necessary; prints the error"
    )
    parser.add_argument(
        "--bundle-embeddings", action="store_true", help="kohya: write trained embeddings of the trigger into the file "
        "(AUTOMATIC1111, Forge) instead of beside it; diffusers refuses it"
    )  # fmt: skip
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    from hra_diffusion import interop  # slow; not needed for --help
    from hra_diffusion.interop import compatibility
    from training.runs import lookup

    pipe, watch = load_base(arguments), Stopwatch()
    ((file, info, strength),) = load_adapters(pipe, [arguments.adapter], adapter_folders(None))
    path = arguments.output or default_path(info.name, arguments.format)
    sample = next(iter(lookup.samples_of(file)), None)
    done = interop.export(
        pipe, info.name, arguments.format, path, strength, arguments.lora_rank, info, sample,
        arguments.bundle_embeddings,
    )  # fmt: skip
    notes = compatibility.notes(pipe, info.name, done)
    lines = [f"{done.path}  {done.shape}  {watch}", "", *(f"  {line}" for line in compatibility.lines(done))]
    facts = [
        {"program": row.program, "loads": compatibility.verdict(done, row), "how": row.how}
        for row in compatibility.rows(done)
    ]
    written = {"file": str(done.path), "form": done.form, "rank": done.rank, "error": done.error}
    written["embeddings"] = [str(file) for file in done.embeddings]
    written |= {"loads": facts, "notes": notes, "seconds": watch.seconds}
    print_result(arguments, "\n".join([*lines, "", *notes, *compatibility.advice(info)]), written)


def default_path(name: str, format: str) -> Path:
    """Return the output path without --output."""
    return OUTPUTS / "exports" / (f"{name}.safetensors" if format == "kohya" else f"{name}-{format}")
