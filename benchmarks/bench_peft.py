"""Time of an optimiser step and peak memory, against PEFT's implementations.

Steps of all methods are interleaved. On the CPU peak memory is that of a process per method.

    python -m benchmarks.bench_peft [--device cuda] [--bases "sd1 sdxl"] [--side 32] [--rounds 3]

The latents of SDXL have twice the side. FLUX.2 klein: see ``benchmarks.bench_klein``.
"""

import argparse
import gc
from collections.abc import Sequence
from importlib.metadata import version

from app.benchmarking.timing import median_with_range, ratios, time_interleaved
from benchmarks.models import PEFT_CONFIGS, load_unet
from benchmarks.options import parse_options
from benchmarks.report import BASES, Report, Target, publish
from benchmarks.steps import make_steps, step_memory
from training.memory.peak import in_subprocess

OURS = ("hra", "lora")
COLUMNS = ("base", "method", "seconds per step", "our HRA ÷ this", "peak, GiB", "beyond the base, GiB")
LIMITS = {"cpu": (0.4, 0.4), "cuda": (0.15, 0.3)}
"""Limits of our HRA's time and of its memory beyond the base, relative to PEFT's, by device."""

Rows = list[tuple[object, ...]]


def main() -> None:
    cuda = {"side": 64, "dtype": "bfloat16", "rounds": 10, "bases": "sd1 sdxl"}
    args = parse_options(__doc__, {"side": 32, "rounds": 3, "bases": "sd1"}, cuda, rank=8, batch_size=1)
    measure(args, [*OURS, *PEFT_CONFIGS])


def measure(args: argparse.Namespace, methods: Sequence[str]) -> None:
    """Measure methods on the base models of ``--bases``, and publish what is measured after each."""
    rows: Rows = []
    targets: list[Target] = []
    raw = {}
    for base in args.bases.split():
        rows_of_base, targets_of_base, raw[base] = compare_base(args, base, methods)
        rows += rows_of_base
        targets += targets_of_base
        names = ", ".join(BASES[measured] for measured in raw)
        conditions = (
            f"PEFT {version('peft')}; {names}; rank {args.rank}, {args.side}×{args.side} latents (SDXL twice the "
            f"side), batch {args.batch_size}, {args.dtype}, {args.device}; interleaved rounds"
        )
        publish(Report(conditions, COLUMNS, rows, targets, raw=raw), args)  # the next one may run out of memory


def compare_base(
    args: argparse.Namespace, base: str, names: Sequence[str]
) -> tuple[Rows, list[Target], dict[str, list[float]]]:
    """Measure methods on a base model. Returns rows, targets and seconds."""
    side = args.side * (2 if "sdxl" in base else 1)
    model, shape = (base, args.device, args.dtype), (args.rank, args.batch_size, side)
    measure = in_subprocess if args.device == "cpu" else lambda function, *arguments: function(*arguments)
    memory = {name: measure(step_memory, *model, name, *shape) for name in names}
    gc.collect()
    seconds = time_interleaved(make_steps(load_unet(*model), names, *shape), args.rounds, minutes=args.minutes)
    rows = []
    for name, rounds in seconds.items():
        relative = median_with_range(ratios(seconds["hra"], rounds), ".2f")
        peak, beyond_base = memory[name]
        rows.append((base, name, median_with_range(rounds), relative, f"{peak:.2f}", f"{beyond_base:.2f}"))
    return rows, compare(base, seconds, memory, args.device), seconds


def compare(
    base: str, seconds: dict[str, list[float]], memory: dict[str, tuple[float, float]], device: str
) -> list[Target]:
    """Compare our HRA and LoRA with PEFT's."""
    peak, beyond_base = (ours / theirs for ours, theirs in zip(memory["hra"], memory["PEFT HRA"], strict=True))
    time_limit, memory_limit = LIMITS[device]
    return [
        Target.of(f"{base}, HRA ÷ PEFT's, time", ratios(seconds["hra"], seconds["PEFT HRA"]), time_limit),
        Target(f"{base}, HRA ÷ PEFT's, peak memory", peak, 0.4),
        Target(f"{base}, HRA ÷ PEFT's, memory beyond the base", beyond_base, memory_limit),
        Target.of(f"{base}, LoRA ÷ PEFT's, time", ratios(seconds["lora"], seconds["PEFT LoRA"]), 1.0),
    ]


if __name__ == "__main__":
    main()
