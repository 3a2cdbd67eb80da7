"""Growth of a training step's time and memory with rank, number of loaded adapters, number of photos and resolution.

    python -m benchmarks.bench_growth [--device cuda] [--large sd1] [--rounds 3] [--small-rounds 7]

Growth with the rank is measured on what the adapter adds to the frozen UNet's own passes; relative to the whole step it
would be much smaller.
"""

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from app.benchmarking.timing import median_with_range, ratios, time_interleaved
from app.benchmarking.workloads import make_frozen_step, make_training_step, weight_sharing_copy
from benchmarks.models import copy_with_adapter, load_pipe, load_unet
from benchmarks.options import parse_options
from benchmarks.report import Report, Target, publish
from benchmarks.steps import start_session, step_memory, train_config, trainer_step
from hra_diffusion.adapters import attachment
from training.data.latent_cache import LatentCache
from training.memory.peak import in_subprocess, peak_memory, reset_peak_memory

RANKS, ADAPTER_COUNTS, PHOTO_COUNTS, SIDES = (4, 16, 64, 128), (1, 4, 16, 64), (1, 5, 20, 50), (16, 32, 48)
METHODS = ("lora", "hra")
MAX_GROWTH = 1.05
"""Limit for figures that should not grow."""
ADAPTERS, PHOTOS, FLOOR = "loaded adapters", "photos", ("frozen UNet", 0)
Case = tuple[str, int]
"""What grows, and its value."""
Variants = dict[Case, Callable[[], object]]
Seconds = dict[Case, list[float]]
Peaks = dict[Case, tuple[float, float]]


def main() -> None:
    defaults = {"rounds": 3, "small_rounds": 7}, {"rounds": 10, "small_rounds": 20}
    args = parse_options(__doc__, *defaults, large="sd1", side=32)
    toybox = load_pipe("toybox", args.device, args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        seconds = time_interleaved(vary_adapters(toybox.unet, ADAPTER_COUNTS), args.small_rounds, minutes=args.minutes)
        by_photos = vary_photos(toybox, args, Path(folder), PHOTO_COUNTS)
        seconds |= time_interleaved(by_photos, args.small_rounds, minutes=args.minutes)
    unet = load_unet(args.large, args.device, args.dtype)
    seconds |= time_interleaved(vary_rank(unet, args.side), args.rounds, minutes=args.minutes)
    seconds |= time_interleaved(vary_side(unet), args.rounds, minutes=args.minutes)
    del unet
    peaks = measure_peaks(args)
    kinds = dict.fromkeys(kind for kind, _ in seconds)
    rows = [row for kind in kinds for row in make_rows(kind, seconds, peaks)]
    targets = [linear(seconds, f"{method}, rank") for method in METHODS]
    targets += [*flat(seconds, peaks, ADAPTERS, ADAPTER_COUNTS), *flat(seconds, peaks, PHOTOS, PHOTO_COUNTS)]
    columns = ("variable", "value", "rounds", "seconds per step", "÷ the first", "", "memory beyond the base, GiB")
    conditions = (f"steps at batch 1, {args.dtype}, {args.device}, in interleaved rounds; adapters and photos on "
                  f"toybox, rank and latents on {args.large} (random weights)")  # fmt: skip
    raw = {f"{kind} {value}": rounds for (kind, value), rounds in seconds.items()}
    publish(Report(conditions, columns, rows, targets, raw=raw), args)


def make_rows(kind: str, seconds: Seconds, peaks: Peaks) -> Iterable[tuple[object, ...]]:
    """Yield the table's rows for one variable."""
    by_value = {value: rounds for (other, value), rounds in seconds.items() if other == kind}
    first = by_value[min(by_value)]
    largest = max(statistics.median(rounds) for rounds in by_value.values())
    for value, rounds in by_value.items():
        bar = "█" * max(1, round(12 * statistics.median(rounds) / largest))
        memory = f"{peaks[kind, value][1]:.2f}" if (kind, value) in peaks else ""
        relative = median_with_range(ratios(rounds, first), ".2f")
        yield kind, value, len(rounds), median_with_range(rounds), relative, bar, memory


def linear(seconds: Seconds, kind: str) -> Target:
    """Compare what the highest rank adds to the frozen UNet with what the lowest measurable rank adds.

    A rank is measurable if it adds time in every round. The target is undecided if none below the highest is: the
    machine's noise is larger than what they add.
    """
    added = {
        rank: [step - floor for floor, step in zip(seconds[FLOOR], seconds[kind, rank], strict=True)] for rank in RANKS
    }
    *lower, last = RANKS
    first = next((rank for rank in lower if min(added[rank]) > 0), None)
    if first is None:
        what = f"{kind}, what {last} adds to the frozen UNet ÷ what a lower one adds (not measurable)"
        return Target.of(what, [float("nan")], last)
    growth = ratios(added[last], added[first])
    return Target.of(f"{kind}, what {last} adds to the frozen UNet ÷ what {first} adds", growth, last / first)


def flat(seconds: Seconds, peaks: Peaks, kind: str, counts: tuple[int, ...]) -> Iterable[Target]:
    """Compare time and peak memory of the largest count with those of the smallest."""
    first, last = (kind, counts[0]), (kind, counts[-1])
    what = f"{kind}, {counts[-1]} ÷ {counts[0]}"
    yield Target.of(f"{what}, time", ratios(seconds[last], seconds[first]), MAX_GROWTH)
    yield Target(f"{what}, peak memory", peaks[last][0] / peaks[first][0], MAX_GROWTH)


def vary_rank(unet: Any, side: int) -> Variants:
    """Return steps by rank, of a low-rank method and of one of reflections, and the frozen UNet's passes."""
    steps: Variants = {
        (f"{method}, rank", rank): make_training_step(*copy_with_adapter(unet, method, rank), 1, side)
        for method in METHODS
        for rank in RANKS
    }
    return {FLOOR: make_frozen_step(weight_sharing_copy(unet), 1, side)} | steps


def vary_side(unet: Any) -> Variants:
    """Return steps by the side of the latents, an eighth of the image's."""
    return {
        ("hra, side of latents", side): make_training_step(*copy_with_adapter(unet, "hra", 8), 1, side)
        for side in SIDES
    }


def vary_adapters(unet: Any, counts: Iterable[int]) -> Variants:
    """Return steps by the number of adapters on the model, of which one is trained."""
    variants: Variants = {}
    for count in counts:
        model = weight_sharing_copy(unet)
        for number in range(count):
            attachment.attach(model, "hra", {"rank": 8}, name=f"adapter {number}")
        parameters = attachment.adapter_parameters(model, f"adapter {count - 1}").values()
        variants[ADAPTERS, count] = make_training_step(model, parameters, 1)
    return variants


def vary_photos(pipe: Any, args: argparse.Namespace, folder: Path, counts: Iterable[int]) -> Variants:
    """Return the trainer's own steps by the number of photos in the latent cache."""
    config = train_config(args, method="hra", resolution=128, batch_size=1, steps=10_000)
    session = start_session(pipe, config, folder)
    take_step = trainer_step(session)

    take_step = trainer_step(session)

    def step(photos: LatentCache) -> None:
        session.photos = [photos]
        take_step()

    caches = {count: repeat(session.photos[0], count) for count in counts}
    return {(PHOTOS, count): lambda cache=cache: step(cache) for count, cache in caches.items()}


def repeat(cache: LatentCache, count: int) -> LatentCache:
    """Return a cache of ``count`` photos that repeats those of another."""
    indices = [number % len(cache.mean) for number in range(count)]
    captions = cache.captions and dataclasses.replace(
        cache.captions, rows=cache.captions.rows[indices], counts=cache.captions.counts[indices]
    )
    return dataclasses.replace(
        cache, mean=cache.mean[indices], std=cache.std[indices], captions=captions, epoch=torch.arange(count)
    )


def measure_peaks(args: argparse.Namespace) -> Peaks:
    """Measure peak memory in GiB, in total and beyond the base model, each in a process of its own.

    Every resolution is measured, and the smallest and largest value of the other variables.
    """
    model, ends = (args.large, args.device, args.dtype), (0, -1)
    cases = {(f"{method}, rank", RANKS[end]): (method, RANKS[end], 1, args.side) for method in METHODS for end in ends}
    cases |= {("hra, side of latents", side): ("hra", 8, 1, side) for side in SIDES}
    peaks = {case: in_subprocess(step_memory, *model, *options) for case, options in cases.items()}
    on_toybox = [
        (kind, counts[end]) for kind, counts in ((ADAPTERS, ADAPTER_COUNTS), (PHOTOS, PHOTO_COUNTS)) for end in ends
    ]
    return peaks | {case: in_subprocess(toybox_peak, args, *case) for case in on_toybox}


def toybox_peak(args: argparse.Namespace, kind: str, count: int) -> tuple[float, float]:
    """Return this process's peak memory in GiB during steps on toybox, in total and beyond the base model."""
    pipe = load_pipe("toybox", args.device, args.dtype)
    before = reset_peak_memory(args.device)
    with tempfile.TemporaryDirectory() as folder:
        if kind == ADAPTERS:
            variants = vary_adapters(pipe.unet, [count])
        else:
            variants = vary_photos(pipe, args, Path(folder), [count])
        reset_peak_memory(args.device)  # encoding photos needs more memory than a step
        for _ in range(2):  # the optimiser allocates its state in the first step
            variants[kind, count]()
    peak = peak_memory(args.device)
    return peak / 2**30, (peak - before) / 2**30


if __name__ == "__main__":
    main()
