"""Growth: a training step and its memory against rank, adapters loaded, photos and resolution.

    python -m benchmarks.bench_growth [--device cuda] [--large sd1] [--rounds 3] [--small-rounds 7]

Rank may grow linearly what an adapter adds to the frozen UNet's own passes: the whole step would hide much more.
"""

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from app.benchmarking.timing import median_with_range, ratios, time_interleaved
from app.benchmarking.workloads import make_frozen_step, make_training_step, weight_sharing_copy
from benchmarks.common import (
    Report,
    Target,
    adapted,
    arguments,
    load_pipe,
    load_unet,
    publish,
    start_session,
    step_memory,
    train_config,
)
from hra_diffusion.adapters import attachment
from training.data.latent_cache import LatentCache
from training.memory.peak import in_subprocess, peak_memory, reset_peak_memory
from training.step import train_step

RANKS, LOADED, PHOTOS, SIDES = (4, 16, 64, 128), (1, 4, 16, 64), (1, 5, 20, 50), (16, 32, 48)
METHODS = ("lora", "hra")
FLAT = 1.05
ADAPTERS, STORED, FLOOR = "adapters loaded", "photos", ("the frozen UNet alone", 0)
Variants = dict[tuple[str, int], Callable[[], object]]
Spent = dict[tuple[str, int], list[float]]
Peaks = dict[tuple[str, int], tuple[float, float]]


def main() -> None:
    given = arguments(
        __doc__,
        {"rounds": 3, "small_rounds": 7},
        {"rounds": 10, "small_rounds": 20},
        large="sd1",
        side=32,
    )
    small = load_pipe("toybox", given.device, given.dtype)
    with tempfile.TemporaryDirectory() as folder:
        spent = time_interleaved(by_loaded(small.unet, LOADED), given.small_rounds, minutes=given.minutes)
        spent |= time_interleaved(
            by_photos(small, given, Path(folder), PHOTOS), given.small_rounds, minutes=given.minutes
        )
    unet = load_unet(given.large, given.device, given.dtype)
    spent |= time_interleaved(by_rank(unet, given.side), given.rounds, minutes=given.minutes)
    spent |= time_interleaved(by_side(unet), given.rounds, minutes=given.minutes)
    del unet
    peaks = memories(given)
    kinds = dict.fromkeys(kind for kind, _ in spent)
    rows = [line for kind in kinds for line in lines(kind, spent, peaks)]
    bars = [linear(spent, f"{method}, rank") for method in METHODS]
    bars += [bar for kind, counts in ((ADAPTERS, LOADED), (STORED, PHOTOS)) for bar in flat(spent, peaks, kind, counts)]
    columns = ("against", "value", "rounds", "a step, s", "÷ the first", "", "memory beyond the base, GiB")
    said = (f"a step at batch 1, {given.dtype}, {given.device}, in interleaved rounds; adapters and photos on toybox, "
            f"rank and latents on {given.large} (random weights)")  # fmt: skip
    raw = {f"{kind} {value}": own for (kind, value), own in spent.items()}
    publish(Report(said, columns, rows, bars, raw=raw), given)


def lines(kind: str, spent: Spent, peaks: Peaks) -> Iterable[tuple[object, ...]]:
    """The rows of one thing that grows."""
    own = {value: values for (one, value), values in spent.items() if one == kind}
    first = own[min(own)]
    largest = max(statistics.median(values) for values in own.values())
    for value, values in own.items():
        drawn = "█" * max(1, round(12 * statistics.median(values) / largest))
        memory = f"{peaks[kind, value][1]:.2f}" if (kind, value) in peaks else ""
        yield (
            kind,
            value,
            len(values),
            median_with_range(values),
            median_with_range(ratios(values, first), ".2f"),
            drawn,
            memory,
        )


def linear(spent: Spent, kind: str) -> Target:
    """Growth of what an adapter adds to the floor, from the least rank whose addition shows in every round.

    Undecided where none below the largest does: what they add is less than the machine's noise.
    """
    added = {rank: [own - floor for floor, own in zip(spent[FLOOR], spent[kind, rank], strict=True)] for rank in RANKS}
    *lower, last = RANKS
    first = next((rank for rank in lower if min(added[rank]) > 0), None)
    if first is None:
        return Target.of(
            f"{kind}, what {last} adds to the frozen UNet ÷ what less adds (none shows)", [float("nan")], last
        )
    growth = ratios(added[last], added[first])
    return Target.of(f"{kind}, what {last} adds to the frozen UNet ÷ what {first} adds", growth, last / first)


def flat(spent: Spent, peaks: Peaks, kind: str, counts: tuple[int, ...]) -> Iterable[Target]:
    """Time and memory with the most of something against those with the least."""
    first, last = (kind, counts[0]), (kind, counts[-1])
    said = f"{kind}, {counts[-1]} ÷ {counts[0]}"
    yield Target.of(f"{said}, time", ratios(spent[last], spent[first]), FLAT)
    yield Target(f"{said}, peak memory", peaks[last][0] / peaks[first][0], FLAT)


def by_rank(unet: Any, side: int) -> Variants:
    """Rank, for a low-rank method and for one of reflections; and the floor that both stand on."""
    steps: Variants = {
        (f"{method}, rank", rank): make_training_step(*adapted(unet, method, rank), 1, side)
        for method in METHODS
        for rank in RANKS
    }
    return {FLOOR: make_frozen_step(weight_sharing_copy(unet), 1, side)} | steps


def by_side(unet: Any) -> Variants:
    """The latents' side: an eighth of the pictures'."""
    return {("hra, side of latents", side): make_training_step(*adapted(unet, "hra", 8), 1, side) for side in SIDES}


def by_loaded(unet: Any, counts: Iterable[int]) -> Variants:
    """Adapters on the model of which one learns."""
    made: Variants = {}
    for count in counts:
        model = weight_sharing_copy(unet)
        for number in range(count):
            attachment.attach(model, "hra", {"rank": 8}, name=f"adapter {number}")
        parameters = attachment.adapter_parameters(model, f"adapter {count - 1}").values()
        made[ADAPTERS, count] = make_training_step(model, parameters, 1)
    return made


def by_photos(pipe: Any, given: argparse.Namespace, folder: Path, counts: Iterable[int]) -> Variants:
    """Photos in the cache, for the trainer's own step."""
    config = train_config(given, method="hra", resolution=128, batch_size=1, steps=10_000)
    session = start_session(pipe, config, folder)

    def step(photos: LatentCache) -> None:
        session.photos = photos
        train_step(session, config.learning_rate)

    cached = {count: repeated(session.photos, count) for count in counts}
    return {(STORED, count): lambda examples=examples: step(examples) for count, examples in cached.items()}


def repeated(examples: LatentCache, count: int) -> LatentCache:
    """So many examples, by taking the same again."""
    picks = [number % len(examples.mean) for number in range(count)]
    text = {key: value[picks] for key, value in examples.text.items()}
    return dataclasses.replace(examples, mean=examples.mean[picks], std=examples.std[picks], text=text)


def memories(given: argparse.Namespace) -> Peaks:
    """Peaks, whole and beyond the loaded base, each from a process of its own: of the ends, and of every resolution."""
    shared = given.large, given.device, given.dtype
    wanted = {
        (f"{method}, rank", rank): (method, rank, 1, given.side) for method in METHODS for rank in (RANKS[0], RANKS[-1])
    }
    wanted |= {("hra, side of latents", side): ("hra", 8, 1, side) for side in SIDES}
    found = {what: in_subprocess(step_memory, *shared, *case) for what, case in wanted.items()}
    ends = [(kind, counts[end]) for kind, counts in ((ADAPTERS, LOADED), (STORED, PHOTOS)) for end in (0, -1)]
    return found | {end: in_subprocess(memory_with, given, *end) for end in ends}


def memory_with(given: argparse.Namespace, kind: str, count: int) -> tuple[float, float]:
    """Peak of a process whose steps on toybox have so many adapters or photos, in GiB, whole and beyond the base."""
    pipe = load_pipe("toybox", given.device, given.dtype)
    before = reset_peak_memory(given.device)
    with tempfile.TemporaryDirectory() as folder:
        made = by_loaded(pipe.unet, [count]) if kind == ADAPTERS else by_photos(pipe, given, Path(folder), [count])
        reset_peak_memory(given.device)  # encoding photos is another phase, and takes more than a step
        for _ in range(2):  # the optimiser's state is there after the first
            made[kind, count]()
    peak = peak_memory(given.device)
    return peak / 2**30, (peak - before) / 2**30


if __name__ == "__main__":
    main()
