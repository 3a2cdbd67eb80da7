"""Contention: two runs at once, drawing while a run trains, and a run beside another busy program, on the same cores.

python -m benchmarks.bench_contention [--rounds 3] [--seconds 8]

Each process loads toybox and warms up; then all of them work for --seconds, and their steps or pictures are counted.
Rows named "default" use GNU OpenMP's own spin count and all cores in each process, as without hra_diffusion.threads.
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
from benchmarks.common import SUBJECT, Report, Target, arguments, publish

RUN, DRAWING, OTHER = "run", "drawing", "other program"
DEFAULT = {"GOMP_SPINCOUNT": "300000", "OMP_NUM_THREADS": str(os.cpu_count())}
SCENARIOS = {
    "a run": [RUN],
    "two runs": [RUN, RUN],
    "drawing": [DRAWING],
    "a run and drawing": [RUN, DRAWING],
    "a run and another program": [RUN, OTHER],
}
WITH_DEFAULTS = ("a run", "drawing", "a run and another program")
"""Two of our processes at once with these settings take minutes to warm up alone."""
WARM_UP = 2
"""Training steps or pictures before the count begins."""


class Over(Exception):  # noqa: N818 (the end of a window, not an error)
    """The seconds of the window are over."""


class Window:
    """Counts ticks for some seconds, once all processes are warm."""

    def __init__(self, barrier: Any, seconds: float, warm_up: int):
        self.barrier, self.seconds, self.warm_up = barrier, seconds, warm_up
        self.ticks, self.start, self.end = 0, 0.0, 0.0

    def __call__(self, *ignored: object) -> None:
        """One training or denoising step is done. Raises Over at the end."""
        self.ticks += 1
        if self.ticks == self.warm_up:
            self.barrier.wait(timeout=300)
            self.start = time.perf_counter()
        self.end = time.perf_counter()
        if self.start and self.end - self.start > self.seconds:
            raise Over

    @property
    def rate(self) -> float:
        """Ticks per second within the window."""
        return (self.ticks - self.warm_up) / (self.end - self.start)


def main() -> None:
    given = arguments(__doc__, {"rounds": 3, "minutes": 12.0}, {}, seconds=8.0)
    found: dict[str, list[dict[str, float]]] = {}

    def measure(name: str, environment: dict[str, str]) -> Callable[[], None]:
        kinds = SCENARIOS[name.removesuffix(", default")]
        return lambda: found.setdefault(name, []).append(rates(kinds, environment, given.seconds))

    variants = {name: measure(name, {}) for name in SCENARIOS}
    variants |= {f"{name}, default": measure(f"{name}, default", DEFAULT) for name in WITH_DEFAULTS}
    rounds = len(time_interleaved(variants, given.rounds, warm_up=False, minutes=given.minutes)["a run"])
    alone = {kind: [each[kind] for each in found[name]] for name, kind in (("a run", RUN), ("drawing", DRAWING))}
    rows = []
    for name, each in found.items():
        for kind in (RUN, DRAWING):
            if kind in each[0]:
                own = [rate[kind] for rate in each]
                unit = "steps/s" if kind == RUN else "pictures/s"
                rows.append(
                    (name, f"{median_with_range(own)} {unit}", median_with_range(ratios(own, alone[kind]), ".2f"))
                )

    def part(name: str, kind: str) -> list[float]:
        return ratios([each[kind] for each in found[name]], alone[kind])

    bars = [
        Target.of("a run alone, time ÷ the default's", part("a run, default", RUN), 1.10),
        Target.of("two runs at once, time ÷ one alone", [1 / own for own in part("two runs", RUN)], 2.0),
        Target.of("drawing beside a run, pace ÷ alone", part("a run and drawing", DRAWING), 0.4, at_least=True),
        Target.of("a run beside drawing, pace ÷ alone", part("a run and drawing", RUN), 0.4, at_least=True),
    ]
    said = f"toybox, HRA, Quick preset, cpu; windows of {given.seconds:g} s; {rounds} interleaved rounds"
    publish(Report(said, ("processes", "pace of each", "÷ alone"), rows, bars, raw=found), given)


def rates(kinds: Sequence[str], environment: dict[str, str], seconds: float) -> dict[str, float]:
    """The pace of each kind of process (the mean of two alike) while all of ``kinds`` work at once."""
    spawn = multiprocessing.get_context("spawn")
    workers = [kind for kind in kinds if kind != OTHER]
    barrier, results = spawn.Barrier(len(workers)), spawn.Queue()
    with environment_of(environment), other_programs(len(kinds) - len(workers)):
        processes = [
            spawn.Process(target=work, args=(kind, barrier, seconds, results), daemon=True) for kind in workers
        ]
        for process in processes:
            process.start()
        found = [results.get(timeout=600) for _ in processes]
        for process in processes:
            process.join()
    return {kind: sum(own) / len(own) for kind in set(workers) if (own := [rate for k, rate in found if k == kind])}


def work(kind: str, barrier: Any, seconds: float, results: Any) -> None:
    """Train or draw until the window is over; puts (kind, steps or pictures per second) into ``results``."""
    pace = train(barrier, seconds) if kind == RUN else generate(barrier, seconds)
    results.put((kind, pace))


def train(barrier: Any, seconds: float) -> float:
    """Training steps per second of a real run."""
    from training import config as configs
    from training import loop
    from training.runs.events import Step

    window = Window(barrier, seconds, WARM_UP)
    config = configs.parse({"name": "bench", "photos": [SUBJECT], "class_noun": "toy", "method": "hra",
                            "preset": "quick", "steps": 100_000, "sample_every": 0, "sample_prompts": [],
                            "device": "cpu"})  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Over):
        loop.train(config, Path(folder), [lambda event: window() if isinstance(event, Step) else None])
    return window.rate


def generate(barrier: Any, seconds: float) -> float:
    """Pictures per second of the drawing that the page does."""
    from hra_diffusion.generation import requests, sampling
    from hra_diffusion.models import loading

    settings = requests.Settings()
    window = Window(barrier, seconds, WARM_UP * settings.steps)
    pipe = loading.load_base(device="cpu")
    with contextlib.suppress(Over):
        while True:
            sampling.generate_batch(pipe, [requests.Request("a toy", 0)], settings, on_step=window)
    return window.rate / settings.steps


@contextlib.contextmanager
def environment_of(changes: dict[str, str]) -> Iterator[None]:
    """The environment of the processes started in the block."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def other_programs(count: int) -> Iterator[None]:
    """Other programs that keep one core busy each."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
