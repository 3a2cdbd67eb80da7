"""hra-diffusion generate: generate pictures with adapters, with the settings stored in each PNG file."""

import argparse
import re
from pathlib import Path

from app.commands.common import (
    OUTPUTS,
    Stopwatch,
    adapter_folders,
    add_base,
    add_fusion,
    add_generation_settings,
    load_adapters,
    load_base,
    parse_settings,
    print_result,
)
from hra_diffusion.files import make_folder
from hra_diffusion.generation.png import PNG_KEY, save_png, slug
from hra_diffusion.generation.sampling import generate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", nargs="+", action="extend", required=True, metavar="TEXT", help="{subject} stands "
                        "for the first adapter's trigger and class noun; (dog:1.4) gives words a weight from 0 to 2, "
                        "\\(dog:1.4\\) is plain text")  # fmt: skip
    parser.add_argument("--adapter", nargs="+", action="extend", default=[], metavar="NAME|FILE[:STRENGTH]",
                        help="adapters to apply together, in order (default: the base model alone)")  # fmt: skip
    add_fusion(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed; picture k of --count has seed + k (default 0)")
    parser.add_argument("--count", type=int, default=1, help="pictures per prompt (default 1)")
    parser.add_argument("--output", type=Path, default=OUTPUTS / "pictures", metavar="DIR", help="output folder")
    add_generation_settings(parser)
    add_base(parser, own_seed=True)


def run(arguments: argparse.Namespace) -> None:
    make_folder(arguments.output)
    pipe, watch = load_base(arguments), Stopwatch()
    adapters = load_adapters(pipe, arguments.adapter, adapter_folders(arguments.output))
    images = generate(
        pipe,
        arguments.prompt,
        {info.name: strength for _, info, strength in adapters},
        arguments.seed,
        arguments.count,
        parse_settings(arguments),
        arguments.negative_prompt,
        arguments.batch_size,
        cuda_graph=arguments.cuda_graph,
        fusion=arguments.fusion,
    )
    numbers = (re.match(r"\d+(?=-)", path.name) for path in arguments.output.glob("*.png"))
    first = max((int(number[0]) for number in numbers if number), default=-1) + 1
    paths = [
        save_png(image, arguments.output / f"{first + i:04d}-{slug(image.info[PNG_KEY]['prompt'])}.png")
        for i, image in enumerate(images)
    ]
    pictures = [{"picture": str(path), **image.info[PNG_KEY]} for path, image in zip(paths, images, strict=True)]
    text = "\n".join(str(path) for path in paths) + f"\n{len(paths)} pictures in {watch}"
    print_result(arguments, text, {"pictures": pictures, "seconds": watch.seconds})
