"""Peak memory of runs with a memory limit, against the limit and the prediction.

    python -m benchmarks.bench_fit [--device cuda] [--base sd1] [--resolution 512] [--limits "5GB 3GB"]

Each run takes a few steps of HRA from a base model on disk, without samples; its peak is that of all phases: loading,
encoding the photos, training. On a GPU it is the allocated memory, on the CPU the resident memory of a process per run.
"""

import argparse
import gc
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.models import load_pipe
from benchmarks.options import parse_options
from benchmarks.report import BASES, Report, Target, publish
from benchmarks.steps import train_config
from training.config import TrainConfig
from training.loop import train
from training.memory.peak import in_subprocess, peak_memory
from training.runs.events import Event, Notice, Plan

STEPS = 3


def main() -> None:
    cuda = {"base": "sd1", "resolution": 512, "batch_size": 1, "limits": "5GB 3GB"}
    cpu = {"resolution": 128, "batch_size": 32, "limits": "1.5GB 1GB"}
    args = parse_options(__doc__, cpu, cuda, rank=8)
    rows, targets = [], []
    with tempfile.TemporaryDirectory() as folder:
        base = save_base(args, Path(folder) / "base")
        for limit in (None, *args.limits.split()):
            config = limited_run(args, base, limit)
            measure = in_subprocess if args.device == "cpu" else lambda function, *arguments: function(*arguments)
            predicted, peak, changes = measure(run, config, args.device)
            rows.append((limit or "none", f"{predicted:.2f}", f"{peak:.2f}", f"{peak / predicted:.2f}", changes))
            if limit:
                targets.append(Target(f"peak, GiB, with --memory-limit {limit}", peak, float(limit.removesuffix("GB"))))
    conditions = f"{BASES[args.base]}, HRA, {args.resolution} px, batch {args.batch_size}, {args.dtype}, {args.device}"
    columns = ("limit", "predicted peak, GiB", "measured peak, GiB", "÷ predicted", "changed settings")
    publish(Report(conditions, columns, rows, targets), args)


def save_base(args: argparse.Namespace, folder: Path) -> str:
    """Return the base model to train: toybox, or a folder with a model of random weights, saved there."""
    if args.base == "toybox":
        return args.base
    load_pipe(args.base, args.device, args.dtype).save_pretrained(folder)
    return str(folder)


def limited_run(args: argparse.Namespace, base: str, limit: str | None) -> TrainConfig:
    """Return the configuration of a short run of HRA with a memory limit."""
    return train_config(
        args, base=base, method="hra", options={"rank": args.rank}, resolution=args.resolution, steps=STEPS,
        batch_size=args.batch_size, memory_limit=limit, checkpoint_every=STEPS,
    )  # fmt: skip


def run(config: TrainConfig, device: str) -> tuple[float, float, str]:
    """Train, and return the predicted and the measured peak in GiB and the settings changed to fit the limit."""
    gc.collect()
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder), [events.append], plan=True)
    predicted: Any = next(event for event in events if isinstance(event, Plan))
    fitted = [event.message for event in events if isinstance(event, Notice) and event.message.startswith("to fit in")]
    changes = fitted[0].partition(": ")[2] if fitted else ""
    return predicted.memory / 2**30, peak_memory(device) / 2**30, changes


if __name__ == "__main__":
    main()
