"""hra-diffusion bench: measure training and generation on this machine. The page's predictions use the results."""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.benchmarking.calibrating import measure_run
from app.benchmarking.machine import describe_machine, machine_facts, markdown_table
from app.benchmarking.timing import median_with_range, time_interleaved
from app.benchmarking.workloads import make_frozen_step, make_training_step, weight_sharing_copy
from app.commands.common import OUTPUTS, Stopwatch, add_base, load_base, print_result
from hra_diffusion.adapters import attachment, registry
from hra_diffusion.adapters.methods import COMPARED
from hra_diffusion.generation.requests import Request, Settings, complete_settings
from hra_diffusion.generation.sampling import generate_batch
from hra_diffusion.models import families
from hra_diffusion.models.sources import TOYBOX
from training import config as train_config
from training.config import TrainConfig
from training.runs.calibration import Calibration

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PHOTOS = 5
BASE_ALONE, IMAGE = "base alone", "a picture"
TIME_OUT = "not measured: out of time; increase --minutes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--method",
        nargs="+",
        choices=registry.method_names(),
        default=list(COMPARED),
        help=f"methods to measure (default: {', '.join(COMPARED)})",
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, methods taking turns (default 3)")
    parser.add_argument("--minutes", type=float, default=2, help="time limit (default 2): after it no further method "
                        "or round is started; one of each is always measured")  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=OUTPUTS, metavar="DIR", help="output folder of the page, which uses the results"
    )
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    configs, watch = {method: default_config(method, arguments) for method in arguments.method}, Stopwatch()
    calibrations: dict[str, Calibration] = {}
    for method, config in configs.items():  # before this process loads the base model, which takes memory and cores
        out_of_time = watch.seconds > 60 * arguments.minutes and not all(c.error for c in calibrations.values())
        calibrations[method] = (
            Calibration(error=TIME_OUT) if out_of_time else measure_run(config, arguments.output, arguments.quiet)
        )
    measured = {method: config for method, config in configs.items() if not calibrations[method].error}
    batch_size = next(iter(configs.values())).batch_size
    pipe = load_base(arguments)
    seconds = time_steps(pipe, measured, batch_size, arguments.rounds, arguments.minutes - watch.seconds / 60)
    image, base_alone = statistics.median(seconds[IMAGE]), statistics.median(seconds[BASE_ALONE])
    rows = [
        result_row(method, seconds.get(method, []), base_alone, calibrations[method], config)
        for method, config in configs.items()
    ]
    results = {"base": arguments.base, "machine": machine_facts(),
               "seconds_of_the_base_alone": round(base_alone, 4), "seconds_of_a_picture": round(image, 3),
               "steps_of_a_picture": complete_settings(pipe, Settings()).steps,
               "rounds": len(seconds[BASE_ALONE]), "methods": rows}  # fmt: skip
    print_result(arguments, format_results(results), results)


def default_config(method: str, arguments: argparse.Namespace) -> TrainConfig:
    """Return the page's default configuration for this method and base model."""
    base = arguments.base
    base = str(Path(base).resolve()) if base != TOYBOX and Path(base).exists() else base
    return train_config.parse({"name": "bench", "photos": ["."], "class_noun": "thing", "method": method,
                               "base": base, "base_revision": arguments.base_revision,
                               "base_variant": arguments.base_variant, "device": arguments.device,
                               "dtype": arguments.dtype,
                               "prediction_type": arguments.prediction_type,
                               "rescale_zero_snr": arguments.rescale_zero_snr})  # fmt: skip


def time_steps(
    pipe: StableDiffusionPipeline, configs: dict[str, TrainConfig], batch_size: int, rounds: int, minutes: float
) -> dict[str, list[float]]:
    """Return seconds per round: an optimiser step of each method, the base model's passes alone, and one image."""
    base, size = families.denoiser(pipe), families.default_side(pipe) // families.latent_pixels(pipe)
    functions: dict[str, Callable[[], object]] = {
        BASE_ALONE: make_frozen_step(weight_sharing_copy(base), batch_size, size)
    }
    for method, config in configs.items():
        denoiser = weight_sharing_copy(base)
        attachment.attach(denoiser, method, config.options)
        parameters = attachment.adapter_parameters(denoiser, "default").values()
        penalty = functools.partial(attachment.penalty, denoiser, "default")
        functions[method] = make_training_step(denoiser, parameters, config.batch_size, size, penalty)
    functions[IMAGE] = lambda: generate_batch(pipe, [Request("a photo of a thing", 0)], Settings())
    return time_interleaved(functions, rounds, minutes=minutes, min_rounds=1)


def result_row(
    method: str, seconds: list[float], base_alone: float, measured: Calibration, config: TrainConfig
) -> dict[str, Any]:
    """Return a method's results as JSON values, without times if it could not be measured."""
    step = statistics.median(seconds) if seconds else None
    return {
        "method": method,
        "step_seconds": step and round(step, 4),
        "step_seconds_of_all_rounds": [round(value, 4) for value in seconds],
        "of_the_base_alone": step and round(step / base_alone, 3),
        "peak_memory_bytes": measured.memory,
        "preset": config.preset,
        "steps": config.steps,
        "run_seconds": round(measured.seconds(config, PHOTOS), 1),
        "error": measured.error,
    }


def format_results(results: dict[str, Any]) -> str:
    """Format the results as a Markdown table and a sentence about the machine."""
    rows = [
        (
            row["method"],
            "" if row["error"] else median_with_range(row["step_seconds_of_all_rounds"]),
            "" if row["error"] else f"{row['of_the_base_alone']:.2f}",
            row["error"] or f"{row['peak_memory_bytes'] / 2**30:.1f} GiB",
            "" if row["error"] else f"{row['run_seconds'] / 60:.1f} min",
        )
        for row in results["methods"]
    ]
    first = results["methods"][0]
    columns = (
        "method",
        "step, s",
        "÷ base alone",
        "peak memory",
        f"{first['preset']}, {first['steps']} steps, {PHOTOS} photos",
    )
    machine = describe_machine(results["machine"])
    rounds = "one round" if results["rounds"] == 1 else f"{results['rounds']} rounds, taking turns"
    return (
        f"{results['base']} on {machine}; {rounds}\n\n{markdown_table(columns, rows)}\n\n"
        f"The base model alone, forward and backward: {results['seconds_of_the_base_alone']:.3g} s. "
        f"A picture of {results['steps_of_a_picture']} denoising steps: {results['seconds_of_a_picture']:.3g} s."
    )
