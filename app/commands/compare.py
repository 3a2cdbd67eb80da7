"""hra-diffusion compare: compare adapters and the base model on the same prompts and noise."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from app.commands.common import (
    OUTPUTS,
    adapter_folders,
    add_base,
    add_generation_settings,
    load_adapters,
    load_base,
    parse_settings,
    print_result,
)
from hra_diffusion.adapters.adapter_file import AdapterInfo
from hra_diffusion.comparison.compare import BASE, Variant, compare
from hra_diffusion.comparison.statistics import score_statistics
from hra_diffusion.comparison.storage import save_comparison
from hra_diffusion.errors import UserError
from hra_diffusion.evaluation.clip import Clip, find_clip
from hra_diffusion.files import make_folder, next_numbered
from hra_diffusion.generation.requests import Settings, complete_settings
from hra_diffusion.library import training_costs
from training.data.dataset import load_dataset
from training.runs.lookup import photos_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", nargs="+", action="extend", required=True, metavar="NAME|FILE[:STRENGTH]",
                        help="one column of the grid each")  # fmt: skip
    parser.add_argument("--prompt", nargs="+", action="extend", required=True, metavar="TEXT", help="{subject} stands "
                        "for each adapter's trigger and class noun; weights as in generate")  # fmt: skip
    parser.add_argument(
        "--seed", type=int, nargs="+", action="extend", metavar="N", help="one row of the grid each (default 0)"
    )
    parser.add_argument("--photos", type=Path, nargs="+", metavar="PATH", help="reference photos "
                        "(default: the first adapter's training photos, if its run has kept them)")  # fmt: skip
    parser.add_argument("--clip", metavar="CLIP", help="CLIP model that scores the pictures: a folder, a hub "
                        "id, or none (default for toybox: its own; else openai/clip-vit-base-patch32)")  # fmt: skip
    parser.add_argument("--drift", action="store_true", help="measure how each adapter changes its class "
                        "without the trigger; takes up to two more pictures per prompt and adapter")  # fmt: skip
    parser.add_argument("--no-base", action="store_true", help="leave out the base model")
    parser.add_argument("--output", type=Path, metavar="DIR", help="output folder (default: a new folder in "
                        f"{OUTPUTS / 'compare'})")  # fmt: skip
    add_generation_settings(parser)
    add_base(parser, own_seed=True)


def run(arguments: argparse.Namespace) -> None:
    output = make_folder(arguments.output or next_numbered(OUTPUTS / "compare"))
    if (output / "results.json").exists():
        raise UserError(f"{output} already holds a comparison; choose another folder with --output")
    pipe = load_base(arguments)
    adapters = load_adapters(pipe, arguments.adapter, adapter_folders(output))
    variants = [
        Variant(label(info, strength), {info.name: strength}, info.subject, info.class_noun, training_costs(path, info))
        for path, info, strength in adapters
    ]
    if not arguments.no_base:
        variants.insert(0, Variant(BASE, {}))
    comparison = compare(
        pipe,
        variants,
        arguments.prompt,
        arguments.seed or [0],
        parse_settings(arguments),
        reference_photos(pipe, adapters[0][0], arguments.photos),
        arguments.negative_prompt,
        arguments.batch_size,
        clip=load_clip(arguments.clip, arguments),
        drift=arguments.drift,
        cuda_graph=arguments.cuda_graph,
    )
    grid = save_comparison(comparison, output)
    results = output / "results.json"
    lines = [str(grid), f"{len(comparison.samples)} pictures in {comparison.seconds:.1f} s; details in {results}"]
    for index, variant in enumerate(comparison.variants):
        figures = ", ".join(f"{name} {value}" for name, value in score_statistics(comparison, index).items())
        lines += [f"  {variant.label}: {figures} (CLIP scores: a proxy)"] if figures else []
    text = "\n".join(lines)
    print_result(arguments, text, {"grid": str(grid), "results": str(results), "seconds": round(comparison.seconds, 2)})


def load_clip(source: str | None, arguments: argparse.Namespace) -> Clip | None:
    """Load the given CLIP model, by default the base model's; None if the default is not available."""
    clip, missing = find_clip(arguments.base, source, arguments.device or "cpu")
    if missing and not arguments.quiet:
        print(f"note: {missing} (--clip FOLDER); the comparison has no scores", file=sys.stderr)
    return clip


def label(info: AdapterInfo, strength: float) -> str:
    """Return an adapter's name, with its strength if that is not 1."""
    return info.name if strength == 1 else f"{info.name} × {strength:g}"


def reference_photos(
    pipe: StableDiffusionPipeline, adapter: Path, given: list[Path] | None = None
) -> list[Image.Image]:
    """Return the given photos, cropped to the base model's size, by default those that the adapter's run has kept."""
    size = complete_settings(pipe, Settings()).width
    return [photo.image for photo in load_dataset(given, size).photos] if given else photos_of(adapter, size)
