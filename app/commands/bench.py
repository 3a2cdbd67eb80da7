"""hra-diffusion bench: measure training and generation on this machine. The page's predictions use the results."""

import argparse
import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.benchmarking.calibrating import measure_run
from app.benchmarking.machine import describe_machine, machine_facts, markdown_table
from app.benchmarking.timing import median_with_range, time_interleaved
from app.benchmarking.workloads import make_frozen_step, make_training_step, weight_sharing_copy
from app.commands.common import OUTPUTS, Stopwatch, add_base, load_base, print_result
from hra_diffusion.adapters import attachment, registry
from hra_diffusion.adapters.methods import COMPARED
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate_batch
from hra_diffusion.models.sources import TOYBOX
from training import config as train_config
from training.config import TrainConfig
from training.runs.calibration import Calibration

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
    seconds = time_steps(measured, batch_size, arguments, arguments.minutes - watch.seconds / 60)
    image, base_alone = statistics.median(seconds[IMAGE]), statistics.median(seconds[BASE_ALONE])
    rows = [
        result_row(method, seconds.get(method, []), base_alone, calibrations[method], config)
        for method, config in configs.items()
    ]
    results = {"base": arguments.base, "machine": machine_facts(),
               "seconds_of_the_base_alone": round(base_alone, 4), "seconds_of_a_picture": round(image, 3),
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
    configs: dict[str, TrainConfig], batch_size: int, arguments: argparse.Namespace, minutes: float
) -> dict[str, list[float]]:
    """Return seconds per round: an optimiser step of each method, the base model's passes alone, and one image."""
    pipe = load_base(arguments)
    functions: dict[str, Callable[[], object]] = {
        BASE_ALONE: make_frozen_step(weight_sharing_copy(pipe.unet), batch_size)
    }
    for method, config in configs.items():
        unet = weight_sharing_copy(pipe.unet)
        attachment.attach(unet, method, config.options)
        parameters = attachment.adapter_parameters(unet, "default").values()
        penalty = functools.partial(attachment.penalty, unet, "default")
        functions[method] = make_training_step(unet, parameters, config.batch_size, penalty=penalty)
    functions[IMAGE] = lambda: generate_batch(pipe, [Request("a photo of a thing", 0)], Settings())
    return time_interleaved(functions, arguments.rounds, minutes=minutes, min_rounds=1)


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
        f"A picture of 25 denoising steps: {results['seconds_of_a_picture']:.3g} s."
    )
