"""hra-diffusion demo: the whole way on a sample subject. A second run finds everything done."""

import argparse
from pathlib import Path

from app.commands.common import OUTPUTS, Stopwatch, add_base, load_base, say
from app.commands.compare import find_clip, reference_photos
from hra_diffusion import libraries, library
from hra_diffusion.adapters import registry
from hra_diffusion.comparison.compare import BASE, Variant, compare, save_comparison
from hra_diffusion.models import sources
from training import config as configs
from training.runs.events import Bar
from training.runs.run_folder import Run

SUBJECT, CLASS_NOUN = "octopus", "toy"
METHODS = ("lora", "hra")
PROMPTS = ("a {subject} in the snow", "a {subject} on the beach", "a {subject} on a cobblestone street")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=OUTPUTS / "demo", metavar="DIR", help="where everything goes")
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    from training.loop import train  # takes seconds, and --help waits for none

    libraries.hide_loading_bars()
    whole, seconds = Stopwatch(), {}
    for method in METHODS:
        watch = Stopwatch()
        listeners = [] if arguments.quiet or arguments.json else [Bar(method)]
        adapter = train(config(method, arguments), arguments.output, listeners, resume=True)
        seconds[f"train {method}"] = watch.seconds
        if watch.seconds > 1:  # else it was trained before
            seconds |= {f"  {method} {phase}": s for phase, s in Run(adapter.parent).state["seconds"].items()}
    watch, grid = Stopwatch(), arguments.output / "grid.png"
    if not grid.exists():
        draw_comparison(arguments)
    seconds["compare"] = watch.seconds
    seconds["in all"] = whole.seconds
    table = "\n".join(f"{phase:20} {s:7.1f} s" for phase, s in seconds.items())
    say(
        arguments, f"{table}\n\nphotos | base | LoRA | HRA, same noise: {grid}", {"grid": str(grid), "seconds": seconds}
    )


def config(method: str, arguments: argparse.Namespace) -> configs.TrainConfig:
    """The run of one method on the sample subject."""
    photos = sources.ASSETS / "subjects" / SUBJECT
    return configs.parse(
        {
            "name": f"{SUBJECT}-{method}",
            "photos": [photos],
            "class_noun": CLASS_NOUN,
            "method": method,
            "preset": "quick",
            "base": arguments.base,
            "device": arguments.device,
            "dtype": arguments.dtype,
            "prediction_type": arguments.prediction_type,
            "rescale_zero_snr": arguments.rescale_zero_snr,
            "seed": arguments.seed,
        }
    )


def draw_comparison(arguments: argparse.Namespace) -> None:
    """Base, LoRA and HRA on a few prompts, from the same noise, beside the photos."""
    pipe, output = load_base(arguments), arguments.output
    adapters = [library.find_adapter(f"{SUBJECT}-{method}", [output]) for method in METHODS]
    columns = [Variant(BASE, {}, CLASS_NOUN)]
    for method, adapter in zip(METHODS, adapters, strict=True):
        info = library.load_unique(pipe, adapter)
        columns.append(Variant(registry.get_method(method).title, {info.name: 1.0}, info.subject, CLASS_NOUN,
                              library.training_costs(adapter, info)))  # fmt: skip
    photos = reference_photos(pipe, adapters[0])
    clip = find_clip(None, arguments)
    save_comparison(compare(pipe, columns, PROMPTS, (arguments.seed,), photos=photos, clip=clip), output)
