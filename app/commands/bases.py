"""hra-diffusion bases: the base models on this machine; downloads others."""

import argparse

from app.commands.common import add_base, print_result
from hra_diffusion.models.sources import TOYBOX


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--download", metavar="ID", help="download this base model from the Hugging Face hub")
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    if arguments.download:
        download(arguments)
    else:
        list_bases(arguments)


def list_bases(arguments: argparse.Namespace) -> None:
    """Print the embedded base model and those in the local hub cache."""
    from hra_diffusion.models.hub import cached_bases, format_size

    found = cached_bases()
    lines = [f"{TOYBOX:52} embedded", *(f"{base.name:52} {format_size(base.size)} in the hub cache" for base in found)]
    print_result(arguments, "\n".join(lines), {"bases": [TOYBOX, *(base.name for base in found)]})


def download(arguments: argparse.Namespace) -> None:
    """Print what a base model on the hub is, and download it."""
    from hra_diffusion.models import hub

    base = hub.find_base(arguments.download, arguments.dtype)
    silent = arguments.json or arguments.quiet
    if not silent:
        print(f"{base.name}: {hub.format_size(base.size)}, licence {base.license}")
    hub.download(base, (lambda done: None) if silent else None)
    facts = {"base": base.name, "license": base.license, "bytes": base.size, "files": list(base.files)}
    print_result(arguments, f"downloaded; use it with --base {base.name}", facts)
