"""Pictures of many adapters, as ``hra-diffusion serve`` draws them, against two other ways to serve them.

    python -m benchmarks.bench_serving [--device cuda] [--base toybox] [--distinct 1,8,64,512] [--pictures 24]

As many clients as ``--clients`` each wait for a picture and then ask for the next. Their adapters are Zipf-distributed
over the distinct ones. Variants: *one batch* is the server's engine, with pictures of any adapters in a batch; *one
adapter after another* is the same engine with pictures of a single adapter in each batch; *diffusers* calls
``set_adapters`` of a loaded PEFT LoRA and the pipeline for every request. HTTP is left out. Every variant runs once
before it is timed, so that all adapters are in memory.
"""

import argparse
import gc
import itertools
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from diffusers import DPMSolverMultistepScheduler

import hra_diffusion as hra
from app.benchmarking.timing import median_with_range, ratios, time_interleaved
from app.benchmarking.workloads import weight_sharing_copy
from app.serving.engine import Engine, Picture
from app.serving.store import AdapterStore
from benchmarks.models import PEFT_CONFIGS, attach_random, load_pipe
from benchmarks.options import parse_options
from benchmarks.report import Report, Target, describe_conditions, publish
from hra_diffusion import pipeline
from hra_diffusion.adapters import adapter_file
from hra_diffusion.adapters.gathered import PreparedAdapter
from hra_diffusion.generation.requests import FullSettings, Request, complete_settings
from hra_diffusion.generation.sampling import generate_batch
from training.memory.peak import in_subprocess

PROMPT, GUIDANCE, EQUAL = "a toy in the snow", 3.0, 8
METHODS = ("lora", "hra")
"""Methods whose memory is measured; the pictures are drawn with the first one's adapters."""
BATCH, IN_TURN, DIFFUSERS = "one batch", "one adapter after another", "diffusers' set_adapters"
COLUMNS = ("variant", "distinct adapters", "pictures/s", "latency p50, s", "p95, s")


class InTurn(Picture):
    """A picture that shares a batch with others of its own adapter alone."""

    def joins(self, other: Picture) -> bool:
        """Whether the two can be in one batch."""
        return self.adapter is other.adapter and super().joins(other)


@dataclass
class Load:
    """Clients that each wait for a picture and then ask for the next one, until all are drawn.

    ``latencies``: seconds of each picture, of all calls.
    """

    draw: Callable[["Load"], None]
    uses: Sequence[int]
    clients: int
    latencies: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        """Draw a picture for each of ``uses``."""
        self.draw(self)


def main() -> None:
    cuda = {
        "base": "sd1",
        "dtype": "float16",
        "rounds": 3,
        "image_steps": 20,
        "pictures": 64,
        "clients": 32,
        "side": 64,
    }
    cpu = {"rounds": 3, "image_steps": 4, "pictures": 24, "clients": 16, "side": 16}
    args = parse_options(__doc__, cpu, cuda, rank=8, distinct="1,8,64,512")
    counts = [int(count) for count in args.distinct.split(",")]
    pipe = load_pipe(args.base, args.device, args.dtype)
    pixels = args.side * pipe.vae_scale_factor
    settings = complete_settings(pipe, hra.Settings(args.image_steps, GUIDANCE, "dpm++", pixels, pixels))
    model = args.base, args.device, args.dtype
    memory = {method: in_subprocess(memory_ratio, *model, method, args.rank, max(counts)) for method in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        files = write_adapters(pipe, METHODS[0], args.rank, max(counts), Path(folder))
        store = AdapterStore(files[0].parent, pipeline.components(pipe), 2**40)
        equal = difference_from_alone(pipe, store, files[:EQUAL], settings)
        engine = Engine(pipe, 8, 10**6)
        loads = {(BATCH, count): engine_load(args, engine, store, settings, Picture, count) for count in counts}
        loads |= {(IN_TURN, count): engine_load(args, engine, store, settings, InTurn, count) for count in counts[1:]}
        loads |= {(DIFFUSERS, count): diffusers_load(args, pipe, settings, count) for count in counts if count <= 64}
        seconds = time_interleaved(
            {f"{name}, {count}": load for (name, count), load in loads.items()}, args.rounds, minutes=args.minutes
        )
        engine.stop()
    publish(report(args, loads, seconds, memory, equal, pixels), args)


def write_adapters(pipe: Any, method: str, rank: int, count: int, folder: Path) -> list[Path]:
    """Write adapters with random weights for the UNet's attention, detached from the pipeline."""
    (name,) = attach_random(pipe, [method], rank)
    first = folder / "first.safetensors"
    hra.save(pipe, first, name)
    hra.detach(pipe)
    info, tensors = adapter_file.read(first)
    paths = [folder / method / f"{number}.safetensors" for number in range(count)]
    for number, path in enumerate(paths):
        generator = torch.Generator().manual_seed(number)
        own = {key: value + 0.05 * torch.randn(value.shape, generator=generator) for key, value in tensors.items()}
        adapter_file.save(path, {}, info.model_copy(update={"name": path.stem}), own)
    return paths


def memory_ratio(base: str, device: str, dtype: str, method: str, rank: int, count: int) -> float:
    """Return the growth of this process by all adapters, prepared, divided by the size of their files.

    Call it in a process of its own, which has no freed memory to use again.
    """
    pipe = load_pipe(base, device, dtype)
    with tempfile.TemporaryDirectory() as folder:
        first, *others = write_adapters(pipe, method, rank, count, Path(folder))
        store = AdapterStore(first.parent, pipeline.components(pipe), 2**40)
        store.get(first.stem, 1.0)  # what the first one allocates for all
        gc.collect()
        before = psutil.Process().memory_info().rss
        for path in others:
            store.get(path.stem, 1.0)
        gc.collect()
        grown = psutil.Process().memory_info().rss - before
        return grown / max(1, sum(path.stat().st_size for path in others))


def difference_from_alone(pipe: Any, store: AdapterStore, paths: Sequence[Path], settings: FullSettings) -> float:
    """Return the largest difference, of 255, between pictures of one batch and each drawn alone, attached."""
    prepared = {((path.stem, 1.0),): store.get(path.stem, 1.0) for path in paths}
    requests = [Request(PROMPT, seed, use) for seed, use in enumerate(prepared)]
    together, largest = generate_batch(pipe, requests, settings, prepared=prepared), 0.0
    for path, request, image in zip(paths, requests, together, strict=True):
        hra.load(pipe, path)
        (alone,) = generate_batch(pipe, [request], settings)
        hra.detach(pipe)
        largest = max(largest, float(np.abs(np.asarray(image, dtype=int) - np.asarray(alone, dtype=int)).max()))
    return largest


def zipf(count: int, distinct: int) -> list[int]:
    """Return the numbers of ``count`` adapters, of which number k is used in proportion to 1 / (k + 1)."""
    chances = [1 / (number + 1) for number in range(distinct)]
    return random.Random(0).choices(range(distinct), chances, k=count)


def engine_load(
    args: argparse.Namespace, engine: Engine, store: AdapterStore, settings: FullSettings, kind: type[Picture],
    distinct: int,
) -> Load:  # fmt: skip
    """Return a load that the server's engine draws; ``kind`` says which pictures join in a batch."""

    def pictures(uses: Sequence[int]) -> Iterator[Picture]:
        for seed, use in enumerate(uses):
            adapter: PreparedAdapter = store.get(str(use), 1.0)
            yield kind("client", Request(PROMPT, seed, ((str(use), 1.0),)), settings, adapter)

    def draw(load: Load) -> None:
        rest, done = pictures(load.uses), threading.Semaphore(0)

        def ask(count: int) -> None:
            asked = list(itertools.islice(rest, count))
            for picture in asked:
                picture.since = time.perf_counter()
                picture.future.add_done_callback(lambda _, since=picture.since: drawn(since))
            engine.submit(asked)

        def drawn(since: float) -> None:
            load.latencies.append(time.perf_counter() - since)
            ask(1)
            done.release()

        ask(load.clients)
        for _ in load.uses:
            done.acquire()

    return Load(draw, zipf(args.pictures, distinct), args.clients)


def diffusers_load(args: argparse.Namespace, pipe: Any, settings: FullSettings, distinct: int) -> Load:
    """Return a load that diffusers' pipeline draws one by one, in the order of the requests."""
    unet = weight_sharing_copy(pipe.unet)
    for number in range(distinct):
        unet.add_adapter(PEFT_CONFIGS["PEFT LoRA"](args.rank), f"{number}")
    theirs = type(pipe)(**pipe.components | {"unet": unet}, requires_safety_checker=False)
    theirs.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    size = settings.width, settings.height

    def draw(load: Load) -> None:
        asked = [time.perf_counter()] * load.clients
        for seed, use in enumerate(load.uses):
            theirs.set_adapters([f"{use}"])
            generator = torch.Generator().manual_seed(seed)
            theirs(PROMPT, *size, settings.steps, guidance_scale=GUIDANCE, generator=generator)
            asked.append(time.perf_counter())
            load.latencies.append(asked[-1] - asked[seed])

    return Load(draw, zipf(args.pictures, distinct), args.clients)


def report(
    args: argparse.Namespace, loads: dict[tuple[str, int], Load], seconds: dict[str, list[float]],
    memory: dict[str, float], equal: float, pixels: int,
) -> Report:  # fmt: skip
    """Return the result: a row per variant and number of adapters, and the targets."""
    rates = {name: [args.pictures / value for value in rounds] for name, rounds in seconds.items()}
    rows = []
    for (name, count), load in loads.items():
        timed = load.latencies[args.pictures :]  # without those of the first call
        p50, p95 = np.percentile(timed, [50, 95])
        rows.append((name, count, median_with_range(rates[f"{name}, {count}"]), f"{p50:.2f}", f"{p95:.2f}"))
    counts = [count for name, count in loads if name == BATCH]
    many = max(count for count in counts if count <= 64)
    ours = rates[f"{BATCH}, {many}"]
    targets = [
        Target.of(
            f"{many} distinct adapters ÷ one, pictures/s", ratios(ours, rates[f"{BATCH}, {counts[0]}"]), 0.85, True
        ),
        Target.of(f"{many} distinct ÷ {DIFFUSERS}, pictures/s", ratios(ours, rates[f"{DIFFUSERS}, {many}"]), 1.5, True),
        Target(f"memory of {counts[-1]} LoRA ÷ their files", memory[METHODS[0]], 1.2),
        Target("largest difference from pictures drawn alone, of 255", equal, 1.0),
    ]
    inputs = (
        f"{pixels} px, {args.image_steps} denoising steps, guidance, LoRA of rank {args.rank}, batches of 8, "
        f"{args.clients} clients, {args.pictures} pictures a round"
    )
    notes = [f"Memory of {counts[-1]} adapters of HRA, prepared, is {memory[METHODS[1]]:.2f} times their files'."]
    return Report(describe_conditions(args, inputs, seconds), COLUMNS, rows, targets, notes, seconds)


if __name__ == "__main__":
    main()
