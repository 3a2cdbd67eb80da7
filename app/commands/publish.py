"""hra-diffusion publish: upload an adapter with a model card to the Hugging Face hub."""

import argparse
from pathlib import Path

from app.commands.common import OUTPUTS, adapter_folders, add_base, load_base, print_result
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.library import find_adapter, load_unique


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="NAME|FILE")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="model repository on the Hugging Face hub; "
                        "it is created if it does not exist")  # fmt: skip
    parser.add_argument("--private", action="store_true", help="create it as a private repository")
    parser.add_argument("--license", metavar="ID", help="licence of the base model (default: as the hub states it)")
    parser.add_argument("--with-photos", action="store_true", help="publish small copies of the subject's photos, too; "
                        "they stay here otherwise")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="only write the folder")
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"the folder (default: in {OUTPUTS / 'publish'})")
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    from app import publishing  # slow; not needed for --help
    from hra_diffusion.adapters import hub

    hub.require_hub_id(arguments.repo)
    file = find_adapter(arguments.adapter, adapter_folders(None))
    publication = publishing.publication_of(
        file, read_info(file), arguments.repo, arguments.license, arguments.with_photos
    )
    pipe = load_base(arguments)
    folder = arguments.output or OUTPUTS / "publish" / publication.info.name
    files = publishing.write_folder(publication, pipe, load_unique(pipe, file).name, folder)
    lines = [f"{path.relative_to(folder)}  {path.stat().st_size / 1e6:.2f} MB" for path in files]
    address = "" if arguments.dry_run else hub.upload(folder, arguments.repo, arguments.private)
    lines += [f"published: {address}" if address else f"written to {folder}; nothing was uploaded"]
    facts = {"folder": str(folder), "files": [str(path.relative_to(folder)) for path in files], "address": address}
    print_result(arguments, "\n".join(lines), facts)
