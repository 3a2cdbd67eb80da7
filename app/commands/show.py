"""hra-diffusion show: show the metadata of an adapter or a picture."""

import argparse
from pathlib import Path

from app.commands.adapters import facts
from app.commands.common import adapter_folders, add_base, print_result
from hra_diffusion import yaml_text
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.generation.png import read_png
from hra_diffusion.library import SavedAdapter, find_adapter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("item", metavar="NAME|FILE|PNG")
    parser.add_argument("--output", type=Path, metavar="DIR", help="search this folder, too, for names")
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    if arguments.item.lower().endswith(".png"):
        shown = {"picture": arguments.item, **read_png(Path(arguments.item))}
    else:
        path = find_adapter(arguments.item, adapter_folders(arguments.output))
        shown = facts(SavedAdapter(path, read_info(path)))
    print_result(arguments, yaml_text.write(shown).rstrip(), shown)
