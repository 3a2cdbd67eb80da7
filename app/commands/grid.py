"""hra-diffusion grid: one picture per pair of values of two axes, from the same noise, as one PNG."""

import argparse
from pathlib import Path

from app.commands.common import (
    OUTPUTS,
    Stopwatch,
    adapter_folders,
    add_base,
    add_generation_settings,
    load_base,
    parse_settings,
    parse_strength,
    print_result,
)
from hra_diffusion.comparison.axes import AXES, BASE_CHECKPOINT, LAST_CHECKPOINT, GridPlan, draw_axes
from hra_diffusion.errors import UserError
from hra_diffusion.files import make_folder, next_numbered
from hra_diffusion.generation.png import save_png
from hra_diffusion.library import find_adapter, load_unique
from training.runs.lookup import checkpoint_file

GRIDS = OUTPUTS / "grids"
AXIS_HELP = f"axis ({', '.join(AXES)}) and its values"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--x", nargs="+", required=True, metavar=("AXIS", "VALUE"), help=f"columns: {AXIS_HELP}")
    parser.add_argument("--y", nargs="+", metavar=("AXIS", "VALUE"), help=f"rows: {AXIS_HELP} (default: one row)")
    parser.add_argument("--adapter", metavar="NAME|FILE[:STRENGTH]", help="adapter to apply, and whose checkpoints an "
                        "axis names by their step, last or base (default: the base model)")  # fmt: skip
    parser.add_argument("--prompt", default="a photo of a {subject}", metavar="TEXT", help="prompt, as in generate "
                        "(default: a photo of a {subject})")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of all pictures (default 0)")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"PNG file (default: a new one in {GRIDS})")
    add_generation_settings(parser)
    add_base(parser, own_seed=True)


def run(arguments: argparse.Namespace) -> None:
    output = arguments.output or next_numbered(make_folder(GRIDS), ".png")
    if output.suffix.lower() != ".png" or output.exists():
        raise UserError(f"{output} is not the name of a new PNG file; choose another --output")
    plan = make_plan(arguments)
    files = {value: find_checkpoint(value, arguments.adapter) for value in plan.checkpoints}
    pipe, watch = load_base(arguments), Stopwatch()
    names = {file: load_unique(pipe, file).name for file in dict.fromkeys(files.values()) if file}
    adapters = {value: names[file] if file else "" for value, file in files.items()}
    image = draw_axes(pipe, plan, adapters, arguments.batch_size, cuda_graph=arguments.cuda_graph)
    save_png(image, output)
    text = f"{output}  {len(plan.cells)} pictures  {watch}"
    print_result(arguments, text, {"grid": str(output), "pictures": len(plan.cells), "seconds": watch.seconds})


def make_plan(arguments: argparse.Namespace) -> GridPlan:
    """Return the grid that the arguments describe. Raises UserError for invalid axes."""
    settings = parse_settings(arguments)
    fixed = {
        "checkpoint": LAST_CHECKPOINT if arguments.adapter else BASE_CHECKPOINT,
        "strength": parse_strength(arguments.adapter or "")[1],
        "guidance": settings.guidance_scale, "steps": settings.steps, "scheduler": settings.scheduler,
        "seed": arguments.seed, "prompt": arguments.prompt,
    }  # fmt: skip
    return GridPlan.of(arguments.x, arguments.y or (), fixed, settings, arguments.negative_prompt)


def find_checkpoint(value: str, adapter: str | None) -> Path | None:
    """Return the file that a value of the axis "checkpoint" names, or None for the base model.

    ``adapter``: NAME|FILE[:STRENGTH]. Raises UserError if there is no such file.
    """
    folders = adapter_folders(None)
    own = None
    if adapter is not None:
        own = find_adapter(adapter if Path(adapter).is_file() else parse_strength(adapter)[0], folders)
    return checkpoint_file(value, own, lambda name: find_adapter(name, folders))
