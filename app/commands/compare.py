"""hra-diffusion compare: adapters and the base side by side, from the same noise."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from app.commands.common import (
    OUTPUTS,
    add_base,
    add_drawing,
    load_adapters,
    load_base,
    roots,
    say,
    settings,
)
from hra_diffusion.adapters.adapter_file import AdapterInfo
from hra_diffusion.comparison.compare import BASE, Variant, compare
from hra_diffusion.comparison.statistics import score_statistics
from hra_diffusion.comparison.storage import save_comparison
from hra_diffusion.errors import UserError
from hra_diffusion.evaluation.clip import Clip, find_clip
from hra_diffusion.files import make_folder, next_numbered_folder
from hra_diffusion.generation.requests import Settings, complete_settings
from hra_diffusion.library import training_costs
from training.data.dataset import load_dataset
from training.runs.run_folder import photos_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", nargs="+", action="extend", required=True, metavar="NAME|FILE[:STRENGTH]",
                        help="a column each")  # fmt: skip
    parser.add_argument("--prompt", nargs="+", action="extend", required=True, metavar="TEXT", help="{subject} stands "
                        "for each column's trigger and class noun; weights as for generate")  # fmt: skip
    parser.add_argument("--seed", type=int, nargs="+", action="extend", metavar="N", help="a row each (default 0)")
    parser.add_argument("--photos", type=Path, nargs="+", metavar="PATH", help="reference photos; by default those "
                        "the first adapter learned from, if they are still there")  # fmt: skip
    parser.add_argument("--clip", metavar="CLIP", help="what scores likeness to photos and prompt: a folder, "
                        "a hub id, or none (default: toybox's own, else the usual one)")  # fmt: skip
    parser.add_argument("--drift", action="store_true", help="measure, too, what becomes of the class without the "
                        "trigger: one more picture a prompt and adapter")  # fmt: skip
    parser.add_argument("--no-base", action="store_true", help="leave out the base's column")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the grid goes (default: a new folder in "
                        f"{OUTPUTS / 'compare'})")  # fmt: skip
    add_drawing(parser)
    add_base(parser, own_seed=True)


def run(arguments: argparse.Namespace) -> None:
    output = make_folder(arguments.output or next_numbered_folder(OUTPUTS / "compare"))
    if (output / "results.json").exists():
        raise UserError(f"{output} holds a comparison already; choose another folder with --output")
    pipe = load_base(arguments)
    adapters = load_adapters(pipe, arguments.adapter, roots(output))
    columns = [
        Variant(label(info, strength), {info.name: strength}, info.subject, info.class_noun, training_costs(path, info))
        for path, info, strength in adapters
    ]
    if not arguments.no_base:
        columns.insert(0, Variant(BASE, {}, adapters[0][1].class_noun))
    comparison = compare(
        pipe,
        columns,
        arguments.prompt,
        arguments.seed or [0],
        settings(arguments),
        reference_photos(pipe, adapters[0][0], arguments.photos),
        arguments.negative_prompt,
        arguments.batch_size,
        clip=load_clip(arguments.clip, arguments),
        drift=arguments.drift,
    )
    grid = save_comparison(comparison, output)
    results = output / "results.json"
    lines = [str(grid), f"{len(comparison.samples)} pictures in {comparison.seconds:.1f} s; facts in {results}"]
    for number, column in enumerate(comparison.variants):
        figures = ", ".join(f"{name} {value}" for name, value in score_statistics(comparison, number).items())
        lines += [f"  {column.label}: {figures} (likeness by CLIP: a proxy)"] if figures else []
    text = "\n".join(lines)
    say(arguments, text, {"grid": str(grid), "results": str(results), "seconds": round(comparison.seconds, 2)})


def load_clip(wanted: str | None, arguments: argparse.Namespace) -> Clip | None:
    """The CLIP model asked for; without a wish the base's usual one, or none where that is out of reach."""
    clip, missing = find_clip(arguments.base, wanted, arguments.device or "cpu")
    if missing and not arguments.quiet:
        print(f"note: {missing}; the comparison goes without figures", file=sys.stderr)
    return clip


def label(info: AdapterInfo, strength: float) -> str:
    """How a column is called: the adapter's name, and its strength where that is not 1."""
    return info.name if strength == 1 else f"{info.name} × {strength:g}"


def reference_photos(
    pipe: StableDiffusionPipeline, adapter: Path, given: list[Path] | None = None
) -> list[Image.Image]:
    """The photos to show and to score against: those given, cut to size, or the copies that the run keeps."""
    size = complete_settings(pipe, Settings()).width
    return [photo.image for photo in load_dataset(given, size).photos] if given else photos_of(adapter, size)
