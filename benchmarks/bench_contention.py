"""Processes that share the cores: two runs, a run beside image generation, and a run beside another busy program.

python -m benchmarks.bench_contention [--rounds 3] [--seconds 8]

Each process loads toybox and warms up; then all of them work for --seconds, and their steps or images are counted. Rows
named "default" use GNU OpenMP's default spin count and all cores in each process, as without hra_diffusion.threads.
"""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from app.benchmarking.timing import median_with_range, ratios, time_interleaved
from benchmarks.options import parse_options
from benchmarks.report import Report, Target, publish
from benchmarks.steps import SUBJECT

RUN, GENERATION, OTHER = "run", "generation", "other program"
UNITS = {RUN: "steps/s", GENERATION: "images/s"}
DEFAULTS = {"GOMP_SPINCOUNT": "300000", "OMP_NUM_THREADS": str(os.cpu_count())}
SCENARIOS = {
    "a run": [RUN],
    "two runs": [RUN, RUN],
    "generation": [GENERATION],
    "a run and generation": [RUN, GENERATION],
    "a run and another program": [RUN, OTHER],
}
WITH_DEFAULTS = ("a run", "generation", "a run and another program")
"""Scenarios that are also measured with DEFAULTS. With two of our processes the warm-up alone would take minutes."""
WARM_UP = 2
"""Training steps or images before the count begins."""
Rates = dict[str, list[dict[str, float]]]
"""Steps or images per second by scenario, round and kind of process."""


class TimeIsUp(Exception):  # noqa: N818 (the end of a measurement, not an error)
    """The seconds of the measurement are over."""


class Counter:
    """Count steps for some seconds, from when all processes have warmed up."""

    def __init__(self, barrier: Any, seconds: float, warm_up: int):
        self.barrier, self.seconds, self.warm_up = barrier, seconds, warm_up
        self.steps, self.start, self.end = 0, 0.0, 0.0

    def __call__(self, *ignored: object) -> None:
        """Count a training or denoising step. Raises TimeIsUp at the end."""
        self.steps += 1
        if self.steps == self.warm_up:
            self.barrier.wait(timeout=300)
            self.start = time.perf_counter()
        self.end = time.perf_counter()
        if self.start and self.end - self.start > self.seconds:
            raise TimeIsUp

    @property
    def rate(self) -> float:
        """Counted steps per second."""
        return (self.steps - self.warm_up) / (self.end - self.start)


def main() -> None:
    args = parse_options(__doc__, {"rounds": 3, "minutes": 12.0}, {}, seconds=8.0)
    rates: Rates = {}

    def variant(name: str, environment: dict[str, str]) -> Callable[[], None]:
        kinds = SCENARIOS[name.removesuffix(", default")]
        return lambda: rates.setdefault(name, []).append(measure_rates(kinds, environment, args.seconds))

    variants = {name: variant(name, {}) for name in SCENARIOS}
    variants |= {f"{name}, default": variant(f"{name}, default", DEFAULTS) for name in WITH_DEFAULTS}
    rounds = len(time_interleaved(variants, args.rounds, warm_up=False, minutes=args.minutes)["a run"])
    conditions = f"toybox, HRA, Quick preset, cpu; {args.seconds:g} s per measurement; {rounds} interleaved rounds"
    columns = ("processes", "rate of each", "÷ alone")
    publish(Report(conditions, columns, make_rows(rates), make_targets(rates), raw=rates), args)


def relative_rates(rates: Rates, name: str, kind: str) -> list[float]:
    """Return a kind of process's rate in a scenario, divided by its rate alone."""
    alone = {RUN: "a run", GENERATION: "generation"}[kind]
    return ratios([each[kind] for each in rates[name]], [each[kind] for each in rates[alone]])


def make_rows(rates: Rates) -> list[tuple[str, str, str]]:
    """Return the table's rows: rate of each kind of process in each scenario, and relative to its rate alone."""
    rows = []
    for name, rounds in rates.items():
        for kind, unit in UNITS.items():
            if kind in rounds[0]:
                rate = median_with_range([each[kind] for each in rounds])
                rows.append((name, f"{rate} {unit}", median_with_range(relative_rates(rates, name, kind), ".2f")))
    return rows


def make_targets(rates: Rates) -> list[Target]:
    """Compare the rates of processes that share the cores with those alone."""
    run, generation = (relative_rates(rates, "a run and generation", kind) for kind in (RUN, GENERATION))
    two_runs = [1 / rate for rate in relative_rates(rates, "two runs", RUN)]
    return [
        Target.of("a run alone, time ÷ the default's", relative_rates(rates, "a run, default", RUN), 1.10),
        Target.of("two runs at once, time ÷ one alone", two_runs, 2.0),
        Target.of("generation beside a run, rate ÷ alone", generation, 0.4, at_least=True),
        Target.of("a run beside generation, rate ÷ alone", run, 0.4, at_least=True),
    ]


def measure_rates(kinds: Sequence[str], environment: dict[str, str], seconds: float) -> dict[str, float]:
    """Return the mean rate of each kind of process while all of ``kinds`` run at once."""
    spawn = multiprocessing.get_context("spawn")
    ours = [kind for kind in kinds if kind != OTHER]
    barrier, results = spawn.Barrier(len(ours)), spawn.Queue()
    with environment_variables(environment), other_programs(len(kinds) - len(ours)):
        processes = [spawn.Process(target=work, args=(kind, barrier, seconds, results), daemon=True) for kind in ours]
        for process in processes:
            process.start()
        rates = [results.get(timeout=600) for _ in processes]
        for process in processes:
            process.join()
    by_kind = {kind: [rate for other, rate in rates if other == kind] for kind in ours}
    return {kind: sum(own) / len(own) for kind, own in by_kind.items()}


def work(kind: str, barrier: Any, seconds: float, results: Any) -> None:
    """Train or generate for some seconds, and put (kind, steps or images per second) into the queue ``results``."""
    rate = train(barrier, seconds) if kind == RUN else generate(barrier, seconds)
    results.put((kind, rate))


def train(barrier: Any, seconds: float) -> float:
    """Return training steps per second of a run."""
    from training import config as configs
    from training import loop
    from training.runs.events import Step

    counter = Counter(barrier, seconds, WARM_UP)
    config = configs.parse({"name": "bench", "photos": [SUBJECT], "class_noun": "toy", "method": "hra",
                            "preset": "quick", "steps": 100_000, "sample_every": 0, "sample_prompts": [],
                            "device": "cpu"})  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(TimeIsUp):
        loop.train(config, Path(folder), [lambda event: counter() if isinstance(event, Step) else None])
    return counter.rate


def generate(barrier: Any, seconds: float) -> float:
    """Return images per second with the page's default settings."""
    from hra_diffusion.generation import requests, sampling
    from hra_diffusion.models import loading

    settings = requests.Settings()
    counter = Counter(barrier, seconds, WARM_UP * settings.steps)
    pipe = loading.load_base(device="cpu")
    with contextlib.suppress(TimeIsUp):
        while True:
            sampling.generate_batch(pipe, [requests.Request("a toy", 0)], settings, on_step=counter)
    return counter.rate / settings.steps


@contextlib.contextmanager
def environment_variables(changes: dict[str, str]) -> Iterator[None]:
    """Change environment variables for processes that are started in the block."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def other_programs(count: int) -> Iterator[None]:
    """Run ``count`` programs that keep a core busy each."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
