"""hra-diffusion bench: what learning and drawing cost on this machine. The page's predictions use what it finds."""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import Timeout

from app.commands.common import OUTPUTS, Stopwatch, add_base, load_base, say
from hra_diffusion.adapters import attachment, registry
from hra_diffusion.files import make_folder
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate_batch
from hra_diffusion.models.sources import TOYBOX
from training import config as configs
from training import measurement
from training.config import TrainConfig
from training.memory import measure
from training.runs import calibration
from training.runs.calibration import Calibration
from training.runs.locks import held

PHOTOS = 5
FLOOR, PICTURE = "base alone", "a picture"
OVER = "not measured: the minutes were over; --minutes gives more"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--method", nargs="+", choices=registry.method_names(), default=registry.method_names(), help="default: all"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each step is timed, in turn (default 3)")
    parser.add_argument("--minutes", type=float, default=2, help="after so many no further method is measured and no "
                        "further round begins (default 2); one of each there always is")  # fmt: skip
    parser.add_argument("--output", type=Path, default=OUTPUTS, metavar="DIR", help="where the page keeps its runs")
    add_base(parser)


def run(arguments: argparse.Namespace) -> None:
    chosen, watch = {method: config(method, arguments) for method in arguments.method}, Stopwatch()
    plans: dict[str, Calibration] = {}
    for method, one in chosen.items():  # before the base is loaded here: each has the machine alone
        over = watch.seconds > 60 * arguments.minutes and not all(known.error for known in plans.values())
        plans[method] = Calibration(error=OVER) if over else plan(one, arguments)
    able = [method for method in chosen if not plans[method].error]
    spent = time_steps(chosen, able, arguments, arguments.minutes - watch.seconds / 60)
    picture, floor = statistics.median(spent[PICTURE]), statistics.median(spent[FLOOR])
    rows = [facts(method, spent.get(method, []), floor, plans[method], one) for method, one in chosen.items()]
    machine = measure.machine()
    found = {"base": arguments.base, "machine": machine, "seconds_of_the_base_alone": round(floor, 4),
             "seconds_of_a_picture": round(picture, 3), "rounds": len(spent[FLOOR]), "methods": rows}  # fmt: skip
    say(arguments, text(found), found)


def config(method: str, arguments: argparse.Namespace) -> TrainConfig:
    """The run that the page offers first for this method and base."""
    base = arguments.base
    base = str(Path(base).resolve()) if base != TOYBOX and Path(base).exists() else base
    return configs.parse({"name": "bench", "photos": ["."], "class_noun": "thing", "method": method, "base": base,
                          "device": arguments.device, "dtype": arguments.dtype,
                          "prediction_type": arguments.prediction_type,
                          "rescale_zero_snr": arguments.rescale_zero_snr})  # fmt: skip


def plan(one: TrainConfig, arguments: argparse.Namespace) -> Calibration:
    """A few steps of the very run in a process of its own, kept where the page looks for it."""
    key, folder = calibration.cost_key(one), make_folder(calibration.folder_of(arguments.output))
    configs.write(one, folder / f"{key}.yaml")
    wait_for(folder / ".lock", arguments.quiet)
    try:
        measure.in_subprocess(measurement.main, arguments.output, key)
    except (RuntimeError, Timeout) as error:  # one method's: as when the system ends its process for want of memory
        return Calibration(error=f"could not be measured: {error}")
    return calibration.known(arguments.output, one) or Calibration(error="was not measured")


def wait_for(lock: Path, quiet: bool) -> None:
    """Until no other measurement goes on, as the page's: they would slow each other."""
    if held(lock) and not quiet:
        print(f"waiting for another measurement in {lock.parent} to end", file=sys.stderr)
    while held(lock):
        time.sleep(1)


def time_steps(
    chosen: dict[str, TrainConfig], able: list[str], arguments: argparse.Namespace, minutes: float
) -> dict[str, list[float]]:
    """Seconds of an optimiser step with each method that can learn, of the base's own passes and of a picture."""
    pipe = load_base(arguments)
    contestants: dict[str, Callable[[], object]] = {
        FLOOR: measure.bare_pass(measure.twin(pipe.unet), next(iter(chosen.values())).batch_size)
    }
    for method in able:
        one, unet = chosen[method], measure.twin(pipe.unet)
        attachment.attach(unet, method, one.options)
        parameters = attachment.adapter_parameters(unet, "default").values()
        penalty = functools.partial(attachment.penalty, unet, "default")
        contestants[method] = measure.training_step(unet, parameters, one.batch_size, penalty=penalty)
    contestants[PICTURE] = lambda: generate_batch(pipe, [Request("a photo of a thing", 0)], Settings())
    return measure.interleaved(contestants, arguments.rounds, minutes=minutes, least=1)


def facts(method: str, spent: list[float], floor: float, planned: Calibration, one: TrainConfig) -> dict[str, Any]:
    """What was found for a method, as plain values; no seconds for one that can't learn here."""
    step = statistics.median(spent) if spent else None
    return {
        "method": method,
        "step_seconds": step and round(step, 4),
        "step_seconds_of_all_rounds": [round(seconds, 4) for seconds in spent],
        "of_the_base_alone": step and round(step / floor, 3),
        "peak_memory_bytes": planned.memory,
        "preset": one.preset,
        "steps": one.steps,
        "run_seconds": round(planned.seconds(one, PHOTOS), 1),
        "error": planned.error,
    }


def text(found: dict[str, Any]) -> str:
    """The same for reading."""
    rows = [
        (
            row["method"],
            "" if row["error"] else measure.spread(row["step_seconds_of_all_rounds"]),
            "" if row["error"] else f"{row['of_the_base_alone']:.2f}",
            row["error"] or f"{row['peak_memory_bytes'] / 2**30:.1f} GiB",
            "" if row["error"] else f"{row['run_seconds'] / 60:.1f} min",
        )
        for row in found["methods"]
    ]
    one = found["methods"][0]
    columns = (
        "method",
        "a step, s",
        "÷ base alone",
        "peak memory",
        f"{one['preset']}, {one['steps']} steps, {PHOTOS} photos",
    )
    machine = measure.in_words(found["machine"])
    rounds = "a single round" if found["rounds"] == 1 else f"{found['rounds']} rounds in turn"
    return (
        f"{found['base']} on {machine}; {rounds}\n\n{measure.markdown(columns, rows)}\n\n"
        f"The base alone, forward and backward: {found['seconds_of_the_base_alone']:.3g} s. "
        f"A picture of 25 denoising steps: {found['seconds_of_a_picture']:.3g} s."
    )
