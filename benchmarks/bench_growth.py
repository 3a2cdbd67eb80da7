"""Growth: a training step against rank, adapters loaded, photos and resolution; its memory against rank and resolution.

python -m benchmarks.bench_growth [--device cuda] [--large sd1] [--rounds 2] [--small-rounds 7]
"""

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.common import (
    Bar,
    Report,
    adapted,
    arguments,
    load_pipe,
    load_unet,
    memory_of_a_step,
    publish,
    start_session,
    train_config,
)
from hra_diffusion import attachment
from training.cache import Examples
from training.loop import train_step
from training.measure import apart, interleaved, ratios, spread, training_step, twin

RANKS, LOADED, PHOTOS, SIDES = (4, 16, 64, 128), (1, 4, 16, 64), (1, 5, 20, 50), (16, 32, 48)
METHODS = ("lora", "hra")
FLAT = 1.05
Contestants = dict[tuple[str, int], Callable[[], object]]


def main() -> None:
    given = arguments(
        __doc__,
        {"rounds": 2, "small_rounds": 7},
        {"rounds": 10, "small_rounds": 20},
        large="sd1",
        side=32,
    )
    small = load_pipe("toybox", given.device, given.dtype)
    with tempfile.TemporaryDirectory() as folder:
        groups = [
            interleaved(by_loaded(small.unet), given.small_rounds, minutes=given.minutes),
            interleaved(by_photos(small, given, Path(folder)), given.small_rounds, minutes=given.minutes),
        ]
    unet = load_unet(given.large, given.device, given.dtype)
    groups += [
        interleaved(by_rank(unet, given.side), given.rounds, minutes=given.minutes),
        interleaved(by_side(unet), given.rounds, minutes=given.minutes),
    ]
    del unet
    peaks = memories(given)
    rows, bars = [], []
    for group in groups:
        for kind in dict.fromkeys(kind for kind, _ in group):
            own = {value: group[kind, value] for one, value in group if one == kind}
            rows += lines(kind, own, peaks)
            first, last = min(own), max(own)
            growth, grown = statistics.median(ratios(own[last], own[first])), last / first
            limit = grown if "rank" in kind else FLAT
            if "latents" not in kind:
                bars.append(Bar(f"{kind}, {last} ÷ {first}", growth, limit))
    columns = ("against", "value", "a step, s", "÷ the first", "", "memory beyond the base, GiB")
    said = (f"a step at batch 1, {given.dtype}, {given.device}; adapters and photos on toybox, {given.small_rounds} "
            f"interleaved rounds; rank and latents on {given.large} (random weights), {given.rounds}")  # fmt: skip
    raw = {f"{kind} {value}": own for group in groups for (kind, value), own in group.items()}
    publish(Report(said, columns, rows, bars, raw=raw), given)


def lines(kind: str, own: dict[int, list[float]], peaks: dict[tuple[str, int], float]) -> Iterable[tuple[object, ...]]:
    """The rows of one thing that grows."""
    first = own[min(own)]
    largest = max(statistics.median(values) for values in own.values())
    for value, values in own.items():
        drawn = "█" * max(1, round(12 * statistics.median(values) / largest))
        memory = f"{peaks[kind, value]:.2f}" if (kind, value) in peaks else ""
        yield kind, value, spread(values), spread(ratios(values, first), ".2f"), drawn, memory


def by_rank(unet: Any, side: int) -> Contestants:
    """Rank, for a low-rank method and for one of reflections."""
    return {
        (f"{method}, rank", rank): training_step(*adapted(unet, method, rank), 1, side)
        for method in METHODS
        for rank in RANKS
    }


def by_side(unet: Any) -> Contestants:
    """The latents' side: an eighth of the pictures'."""
    return {("hra, side of latents", side): training_step(*adapted(unet, "hra", 8), 1, side) for side in SIDES}


def by_loaded(unet: Any) -> Contestants:
    """Adapters on the model of which one learns."""
    made: Contestants = {}
    for count in LOADED:
        model = twin(unet)
        for number in range(count):
            attachment.attach(model, "hra", {"rank": 8}, name=f"adapter {number}")
        parameters = attachment.adapter_parameters(model, f"adapter {count - 1}").values()
        made["adapters loaded", count] = training_step(model, parameters, 1)
    return made


def by_photos(pipe: Any, given: argparse.Namespace, folder: Path) -> Contestants:
    """Photos in the cache, for the trainer's own step."""
    config = train_config(given, method="hra", resolution=128, batch_size=1, steps=10_000)
    session = start_session(pipe, config, folder)

    def step(photos: Examples) -> None:
        session.photos = photos
        train_step(session, config.learning_rate)

    cached = {count: repeated(session.photos, count) for count in PHOTOS}
    return {("photos", count): lambda examples=examples: step(examples) for count, examples in cached.items()}


def repeated(examples: Examples, count: int) -> Examples:
    """So many examples, by taking the same again."""
    picks = [number % len(examples.mean) for number in range(count)]
    text = {key: value[picks] for key, value in examples.text.items()}
    return dataclasses.replace(examples, mean=examples.mean[picks], std=examples.std[picks], text=text)


def memories(given: argparse.Namespace) -> dict[tuple[str, int], float]:
    """Peaks beyond the loaded base, each from a process of its own: the ends of rank, and every resolution."""
    shared = given.large, given.device, given.dtype
    wanted = {
        (f"{method}, rank", rank): (method, rank, 1, given.side) for method in METHODS for rank in (RANKS[0], RANKS[-1])
    }
    wanted |= {("hra, side of latents", side): ("hra", 8, 1, side) for side in SIDES}
    return {what: apart(memory_of_a_step, *shared, *case)[1] for what, case in wanted.items()}


if __name__ == "__main__":
    main()
