"""hra-diffusion show: what an adapter file or a picture says of itself."""

import argparse
from pathlib import Path

import yaml

from app.commands.adapters import facts
from app.commands.common import add_base, roots, say
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.generation.png import read_png
from hra_diffusion.library import SavedAdapter, find_adapter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("thing", metavar="NAME|FILE|PNG")
    parser.add_argument("--output", type=Path, metavar="DIR", help="look for names in this folder too")
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    if arguments.thing.lower().endswith(".png"):
        shown = {"picture": arguments.thing, **read_png(Path(arguments.thing))}
    else:
        path = find_adapter(arguments.thing, roots(arguments.output))
        shown = facts(SavedAdapter(path, read_info(path)))
    say(arguments, yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).rstrip(), shown)
