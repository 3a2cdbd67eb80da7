"""hra-diffusion export: export an adapter, or several as one, to a format that other programs load."""

import argparse
from pathlib import Path

from app.commands.common import (
    OUTPUTS,
    Stopwatch,
    adapter_folders,
    add_base,
    add_fusion,
    load_adapters,
    load_base,
    print_result,
)

FORMATS = {
    "kohya": "one file, for most programs", "diffusers": "one file, for diffusers", "peft": "a folder, for PEFT",
    "merged": "the base model with the adapter merged in",
}  # fmt: skip
OUTPUT_HELP = "file or folder; merged writes one file in the original layout for PATH.safetensors (default: in "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", nargs="+", metavar="NAME|FILE[:STRENGTH]",
                        help="the strength is built into the weights; several adapters become one")  # fmt: skip
    add_fusion(parser)
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
    adapters = load_adapters(pipe, arguments.adapter, adapter_folders(None))
    (file, info, _), alone = adapters[0], len(adapters) == 1
    strengths = {info.name: strength for _, info, strength in adapters}
    path = arguments.output or default_path("+".join(strengths), arguments.format)
    sample = next(iter(lookup.samples_of(file)), None) if alone else None
    done = interop.export(
        pipe, strengths, arguments.format, path, lora_rank=arguments.lora_rank, info=info if alone else None,
        sample=sample, bundle_embeddings=arguments.bundle_embeddings, fusion=arguments.fusion,
    )  # fmt: skip
    notes = list(dict.fromkeys(note for name in strengths for note in compatibility.notes(pipe, name, done)))
    advice = dict.fromkeys(line for _, info, _ in adapters for line in compatibility.advice(info))
    lines = [f"{done.path}  {done.shape}  {watch}", "", *(f"  {line}" for line in compatibility.lines(done))]
    facts = [
        {"program": row.program, "loads": compatibility.verdict(done, row), "how": row.how}
        for row in compatibility.rows(done)
    ]
    written = {"file": str(done.path), "form": done.form, "rank": done.rank, "error": done.error}
    written["embeddings"] = [str(file) for file in done.embeddings]
    written |= {"loads": facts, "notes": notes, "seconds": watch.seconds}
    print_result(arguments, "\n".join([*lines, "", *notes, *advice]), written)


def default_path(name: str, format: str) -> Path:
    """Return the output path without --output."""
    return OUTPUTS / "exports" / (f"{name}.safetensors" if format == "kohya" else f"{name}-{format}")
