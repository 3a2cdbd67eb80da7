"""Options and steps that several commands share."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hra_diffusion import libraries, library
from hra_diffusion.adapters.adapter_file import AdapterInfo
from hra_diffusion.errors import UserError
from hra_diffusion.generation.requests import SIZE_CONDITIONING, Settings
from hra_diffusion.generation.schedulers import SCHEDULERS
from hra_diffusion.models import loading, sources
from hra_diffusion.models.noise import PREDICTION_TYPES

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

OUTPUTS = Path("outputs")


def add_base(parser: argparse.ArgumentParser, own_seed: bool = False) -> None:
    """--base, its noise process, --device, --dtype, --seed, --json, --quiet: every command takes them, so that scripts
    can pass them on.

    ``own_seed``: the command has a --seed of its own.
    """
    group = parser.add_argument_group("base model and machine (taken by every command, used where they matter)")
    group.add_argument(
        "--base", default=sources.TOYBOX, help="toybox (default), a diffusers folder, a .safetensors file, a hub id"
    )
    group.add_argument("--device", choices=("cpu", "cuda", "mps"), help="the best there is by default")
    group.add_argument("--dtype", default="float32", choices=tuple(loading.DTYPES), help="precision of the base")
    group.add_argument(
        "--prediction-type", choices=PREDICTION_TYPES, help="what the base's UNet predicts (default: as the base says)"
    )
    group.add_argument(
        "--rescale-zero-snr",
        action=argparse.BooleanOptionalAction,
        help="whether the base was trained with zero terminal SNR (default: as the base says)",
    )
    if not own_seed:
        group.add_argument("--seed", type=int, default=0, help="decides everything random")
    add_output_mode(parser)


def add_output_mode(parser: argparse.ArgumentParser) -> None:
    """--json and --quiet."""
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors")


def add_drawing(parser: argparse.ArgumentParser) -> None:
    """Options of everything that draws."""
    group = parser.add_argument_group("drawing")
    group.add_argument("--negative-prompt", default="", metavar="TEXT", help="what should not be in the picture")
    group.add_argument("--steps", type=int, default=25, help="denoising steps (default 25)")
    group.add_argument(
        "--guidance-scale", type=float, help="how closely to follow the prompt; the base's own by default"
    )
    group.add_argument(
        "--scheduler", default="dpm++", choices=tuple(SCHEDULERS), help="noise scheduler (default dpm++)"
    )
    group.add_argument("--width", type=int, help="pixels; the base's own by default")
    group.add_argument("--height", type=int, help="pixels; the base's own by default")
    for name, what, metavar in (
        ("original_size", "original size; the picture's own", ("HEIGHT", "WIDTH")),
        ("crops_coords_top_left", "top left corner of the crop; 0 0", ("TOP", "LEFT")),
        ("target_size", "target size; the picture's own", ("HEIGHT", "WIDTH")),
    ):
        group.add_argument(f"--{name.replace('_', '-')}", type=int, nargs=2, metavar=metavar,
                           help=f"SDXL's size conditioning: {what} by default")  # fmt: skip
    group.add_argument("--batch-size", type=int, default=8, help="pictures drawn at once (default 8)")


def settings(arguments: argparse.Namespace) -> Settings:
    """The drawing options as settings."""
    sizes = {name: tuple(given) for name in SIZE_CONDITIONING if (given := getattr(arguments, name))}
    return Settings(
        arguments.steps, arguments.guidance_scale, arguments.scheduler, arguments.width, arguments.height, **sizes
    )


def load_base(arguments: argparse.Namespace) -> StableDiffusionPipeline:
    """The base model the arguments ask for."""
    libraries.hide_loading_bars()
    return loading.load_base(
        arguments.base,
        arguments.device,
        arguments.dtype,
        prediction_type=arguments.prediction_type,
        rescale_zero_snr=arguments.rescale_zero_snr,
    )


def roots(output: Path | None) -> list[Path]:
    """Where adapters are looked for by name: the command's output folder, the one above it, then the default one."""
    return list(dict.fromkeys([*([output, output.parent] if output else []), OUTPUTS]))


def parse_strength(text: str) -> tuple[str, float]:
    """Split "Rex:0.8" into name and strength, which is 1 if absent. Raises UserError if it is not finite."""
    name, colon, strength = text.rpartition(":")
    try:
        value = float(strength) if colon else 1.0
    except ValueError:
        return text, 1.0
    if not math.isfinite(value):
        raise UserError(f"the strength in {text!r} must be a number like 0.8")
    return (name, value) if colon else (text, value)


def load_adapters(
    pipe: StableDiffusionPipeline, wanted: Sequence[str], places: Sequence[Path]
) -> list[tuple[Path, AdapterInfo, float]]:
    """Load adapters given as NAME|FILE[:STRENGTH]; a file asked for twice is loaded once."""
    loaded: dict[Path, AdapterInfo] = {}
    result = []
    for text in wanted:
        name, strength = (text, 1.0) if Path(text).is_file() else parse_strength(text)
        path = library.find_adapter(name, places)
        if path not in loaded:
            loaded[path] = library.load_unique(pipe, path)
        result.append((path, loaded[path], strength))
    return result


def say(arguments: argparse.Namespace, text: str, facts: Any) -> None:
    """Print the text, or in --json mode the facts, or in --quiet mode nothing."""
    if arguments.json:
        print(json.dumps(facts, ensure_ascii=False, default=str))
    elif not arguments.quiet:
        print(text)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self):
        self.start = time.perf_counter()

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s"

    @property
    def seconds(self) -> float:
        return round(time.perf_counter() - self.start, 2)
