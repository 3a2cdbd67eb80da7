"""hra-diffusion caption: write caption files for photos with a captioning model."""

import argparse
from pathlib import Path

from app.commands.common import add_base, print_result
from hra_diffusion import libraries
from hra_diffusion.files import path_of, write_text
from training.data.caption_files import existing_captions
from training.data.photo_files import search


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", nargs="+", metavar="PHOTOS", help="photos, or folders that contain them")
    parser.add_argument("--captioner", metavar="MODEL", help="hub id or folder of a captioning model of transformers, "
                        "BLIP or Florence-2 (default: Salesforce/blip-image-captioning-base, 1 GB)")  # fmt: skip
    parser.add_argument("--class-noun", default="", metavar="NOUN", help="class of the subject, whose place {subject} "
                        "takes in the captions")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the captions that exist, too")
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    found = search([path_of(photo) for photo in arguments.photos]).photos
    files = {path: beside.with_suffix(".txt") for path, beside in sorted(found.items())}
    wanted = [path for path in files if arguments.overwrite or not existing_captions(found[path])]
    captions = dict(zip(wanted, _captions(wanted, arguments), strict=True)) if wanted else {}
    for path, caption in captions.items():
        write_text(files[path], caption)
    kept = f"{len(files) - len(wanted)} photos have a caption already; --overwrite replaces it"
    lines = [f"{files[path].name}: {caption}" for path, caption in captions.items()]
    text = "\n".join([*lines, *([kept] if len(wanted) < len(files) else [])])
    print_result(arguments, text, {"captions": {str(files[path]): caption for path, caption in captions.items()}})


def _captions(photos: list[Path], arguments: argparse.Namespace) -> list[str]:
    from training.data import captioner  # takes seconds to import
    from training.data.decoding import load_photo

    libraries.hide_loading_bars()
    images = [load_photo(photo) for photo in photos]
    source = arguments.captioner or captioner.DEFAULT
    return captioner.write_captions(images, arguments.class_noun, source, arguments.device)
