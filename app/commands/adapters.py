"""hra-diffusion adapters: list adapters."""

import argparse
from pathlib import Path

from app.commands.common import adapter_folders, add_base, print_result
from hra_diffusion.library import SavedAdapter, list_adapters
from hra_diffusion.models.sources import base_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="DIR", help="search this folder, too, besides outputs")
    add_base(parser)
    parser.set_defaults(base=None)


def run(arguments: argparse.Namespace) -> None:
    wanted = base_name(arguments.base) if arguments.base else None
    found = [
        adapter for adapter in list_adapters(adapter_folders(arguments.output)) if wanted in (None, adapter.info.base)
    ]
    text = "\n".join(line(adapter) for adapter in found) or "no adapters yet; train one with hra-diffusion train"
    print_result(arguments, text, {"adapters": [facts(adapter) for adapter in found]})


def line(adapter: SavedAdapter) -> str:
    """Format an adapter as one line."""
    info, size = adapter.info, adapter.path.stat().st_size / 1e6
    return f"{info.name:24} {info.method:8} {info.prompt_names:20} on {info.base:16} {size:6.2f} MB  {adapter.path}"


def facts(adapter: SavedAdapter) -> dict:
    """Return an adapter's metadata as JSON values."""
    shown = adapter.info.model_dump(mode="json", exclude={"fingerprint"})
    return {"file": str(adapter.path), "bytes": adapter.path.stat().st_size, **shown}
