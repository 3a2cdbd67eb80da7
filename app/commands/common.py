"""Options and functions shared by commands."""

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
from hra_diffusion.adapters.state import FUSIONS
from hra_diffusion.errors import UserError
from hra_diffusion.generation.requests import SIZE_CONDITIONING, Settings
from hra_diffusion.generation.schedulers import DEFAULT, SCHEDULERS
from hra_diffusion.models import loading, sources
from hra_diffusion.models.noise import PREDICTION_TYPES

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

OUTPUTS = Path("outputs")


def add_base(parser: argparse.ArgumentParser, own_seed: bool = False) -> None:
    """Add the options of the base model, --seed, --json and --quiet, which every command accepts for uniform scripts.

    ``own_seed``: the command defines --seed itself.
    """
    group = parser.add_argument_group("base model and device (accepted by every command, ignored if not needed)")
    group.add_argument(
        "--base", default=sources.TOYBOX, help="toybox (default), a diffusers folder, a .safetensors file, a hub id"
    )
    group.add_argument("--base-revision", metavar="REVISION", help="branch, tag or commit of a base model on the hub")
    group.add_argument("--base-variant", metavar="VARIANT", help="variant of the base model's weights, such as fp16")
    group.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: the fastest available")
    group.add_argument(
        "--dtype",
        default="float32",
        choices=tuple(loading.DTYPES),
        help="precision of the base model (default float32)",
    )
    group.add_argument(
        "--prediction-type",
        choices=PREDICTION_TYPES,
        help="prediction type (default: from the base model's configuration)",
    )
    group.add_argument(
        "--rescale-zero-snr",
        action=argparse.BooleanOptionalAction,
        help="whether the base model was trained with zero terminal SNR (default: from its configuration)",
    )
    if not own_seed:
        group.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    add_output_mode(parser)


def add_output_mode(parser: argparse.ArgumentParser) -> None:
    """Add --json and --quiet."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="print errors only")


def add_generation_settings(parser: argparse.ArgumentParser) -> None:
    """Add the generation settings."""
    group = parser.add_argument_group("generation settings")
    group.add_argument("--negative-prompt", default="", metavar="TEXT", help="what the picture should not show")
    group.add_argument("--steps", type=int, help="denoising steps (default: the base model's)")
    group.add_argument(
        "--guidance-scale", type=float, help="how closely to follow the prompt (default: the base model's)"
    )
    group.add_argument(
        "--scheduler",
        default=DEFAULT,
        choices=tuple(SCHEDULERS),
        help=f"noise scheduler (default {DEFAULT}; Stable Diffusion 3 and FLUX.2 use their own)",
    )
    group.add_argument("--width", type=int, help="in pixels (default: the base model's)")
    group.add_argument("--height", type=int, help="in pixels (default: the base model's)")
    for name, what, metavar in (
        ("original_size", "original size (default: the picture's size)", ("HEIGHT", "WIDTH")),
        ("crops_coords_top_left", "top left corner of the crop (default 0 0)", ("TOP", "LEFT")),
        ("target_size", "target size (default: the picture's size)", ("HEIGHT", "WIDTH")),
    ):
        group.add_argument(f"--{name.replace('_', '-')}", type=int, nargs=2, metavar=metavar,
                           help=f"SDXL size conditioning: {what}")  # fmt: skip
    group.add_argument("--batch-size", type=int, default=8, help="pictures generated at once (default 8)")
    group.add_argument("--cuda-graph", default="auto", choices=("auto", "off"), help="auto (default) replays the "
                       "denoiser as a CUDA graph, which is faster on a GPU")  # fmt: skip


def add_fusion(parser: argparse.ArgumentParser) -> None:
    """Add the option of how several adapters act together."""
    parser.add_argument("--fusion", default="compose", choices=FUSIONS, help="how several adapters act together: one "
                        "after another (compose, the default), or rotations as their mean on the rotation group, times "
                        "the sum of the strengths (geodesic)")  # fmt: skip


def parse_settings(arguments: argparse.Namespace) -> Settings:
    """Return the generation settings."""
    sizes = {name: tuple(given) for name in SIZE_CONDITIONING if (given := getattr(arguments, name))}
    return Settings(
        arguments.steps, arguments.guidance_scale, arguments.scheduler, arguments.width, arguments.height, **sizes
    )


def load_base(arguments: argparse.Namespace) -> StableDiffusionPipeline:
    """Load the base model."""
    libraries.hide_loading_bars()
    return loading.load_base(
        arguments.base,
        arguments.device,
        arguments.dtype,
        prediction_type=arguments.prediction_type,
        rescale_zero_snr=arguments.rescale_zero_snr,
        revision=arguments.base_revision,
        variant=arguments.base_variant,
    )


def adapter_folders(output: Path | None) -> list[Path]:
    """Return the folders searched for adapters by name: the output folder, its parent, and the default folder."""
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
    pipe: StableDiffusionPipeline, adapters: Sequence[str], folders: Sequence[Path]
) -> list[tuple[Path, AdapterInfo, float]]:
    """Load adapters given as NAME|FILE[:STRENGTH], each file once; return (path, info, strength) in order."""
    loaded: dict[Path, AdapterInfo] = {}
    result = []
    for text in adapters:
        name, strength = (text, 1.0) if Path(text).is_file() else parse_strength(text)
        path = library.find_adapter(name, folders)
        if path not in loaded:
            loaded[path] = library.load_unique(pipe, path)
        result.append((path, loaded[path], strength))
    return result


def print_result(arguments: argparse.Namespace, text: str, facts: Any) -> None:
    """Print the text; with --json print the facts instead, with --quiet nothing."""
    if arguments.json:
        print(json.dumps(facts, ensure_ascii=False, default=str))
    elif not arguments.quiet:
        print(text)


class Stopwatch:
    """Seconds since its creation."""

    def __init__(self):
        self.start = time.perf_counter()

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s"

    @property
    def seconds(self) -> float:
        return round(time.perf_counter() - self.start, 2)
