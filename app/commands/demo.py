"""hra-diffusion demo: train LoRA and HRA on a sample subject and compare them. A second run reuses the first one's."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from app.commands.common import OUTPUTS, Stopwatch, add_base, load_base, print_result
from app.commands.compare import load_clip, reference_photos
from hra_diffusion import libraries, library
from hra_diffusion.adapters import registry
from hra_diffusion.comparison.compare import BASE, Comparison, Variant, compare
from hra_diffusion.comparison.storage import save_comparison
from hra_diffusion.models import sources
from training import config as configs
from training.runs.listeners import ProgressBar
from training.runs.run_folder import Run

SUBJECT, CLASS_NOUN = "robot", "toy"
METHODS = ("lora", "hra")
TOYBOX_STEPS = {"steps": 150, "checkpoint_every": 75, "sample_every": 75}
"""Training steps on the embedded base model: Quick's 80 are too few for HRA, Balanced's 280 and 360 take minutes."""
PROMPTS = ("a {subject} in the snow", "a {subject} on the beach", "a {subject} on a cobblestone street")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=OUTPUTS / "demo", metavar="DIR", help="folder of the adapters and the grid"
    )
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    from training.loop import train  # imports take seconds, which --help doesn't need

    libraries.hide_loading_bars()
    total, seconds, adapters = Stopwatch(), {}, []
    for method in METHODS:
        watch = Stopwatch()
        listeners = [] if arguments.quiet or arguments.json else [ProgressBar(method)]
        adapters.append(train(config(method, arguments), arguments.output, listeners, resume=True))
        seconds[f"train {method}"] = watch.seconds
        if watch.seconds > 1:  # otherwise an earlier demo trained it
            seconds |= {f"  {method} {phase}": s for phase, s in Run(adapters[-1].parent).state.seconds.items()}
    watch, grid = Stopwatch(), arguments.output / "grid.png"
    if not grid.exists() or any(adapter.stat().st_mtime > grid.stat().st_mtime for adapter in adapters):
        save_comparison(compare_methods(adapters, arguments), arguments.output)
    seconds |= {"compare": watch.seconds, "total": total.seconds}
    table = "\n".join(f"{phase:20} {s:7.1f} s" for phase, s in seconds.items())
    text = f"{table}\n\nphotos, base model, LoRA and HRA from the same noise: {grid}"
    print_result(arguments, text, {"grid": str(grid), "seconds": seconds})


def config(method: str, arguments: argparse.Namespace) -> configs.TrainConfig:
    """Training configuration of one method on the sample subject."""
    steps = TOYBOX_STEPS if arguments.base == sources.TOYBOX else {}
    return configs.parse(
        {
            "name": f"{SUBJECT}-{method}",
            "photos": [sources.ASSETS / "subjects" / SUBJECT],
            "class_noun": CLASS_NOUN,
            "method": method,
            "preset": "quick",
            "base": arguments.base,
            "base_revision": arguments.base_revision,
            "base_variant": arguments.base_variant,
            "device": arguments.device,
            "dtype": arguments.dtype,
            "prediction_type": arguments.prediction_type,
            "rescale_zero_snr": arguments.rescale_zero_snr,
            "seed": arguments.seed,
        }
        | steps
    )


def compare_methods(adapters: Sequence[Path], arguments: argparse.Namespace) -> Comparison:
    """Compare the base model and the adapters on PROMPTS, with the same noise."""
    pipe = load_base(arguments)
    variants = [Variant(BASE, {}, CLASS_NOUN)]
    for method, adapter in zip(METHODS, adapters, strict=True):
        info = library.load_unique(pipe, adapter)
        title, costs = registry.get_method(method).title, library.training_costs(adapter, info)
        variants.append(Variant(title, {info.name: 1.0}, info.subject, CLASS_NOUN, costs))
    photos, clip = reference_photos(pipe, adapters[0]), load_clip(None, arguments)
    return compare(pipe, variants, PROMPTS, (arguments.seed,), photos=photos, clip=clip)
