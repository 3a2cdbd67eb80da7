"""Prodigy against AdamW with the preset's learning rate: the rate that it finds, and the loss.

    python -m benchmarks.bench_prodigy [--steps 150] [--batch-size 4] [--minutes 10]

Trains LoRA and HRA on toybox with the settings of the preset, HRA also from vectors four times as long: reflections do
not depend on the length, so the rate must grow with it. All runs draw the same batches.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.models import load_pipe
from benchmarks.options import parse_options
from benchmarks.report import Report, Target, publish
from benchmarks.steps import SUBJECT, start_session
from training import config as configs
from training.session.optimizer import current_learning_rate, found_learning_rate
from training.step import TrainingStep

RUNS = (("lora", "adamw", 1), ("lora", "prodigy", 1), ("hra", "adamw", 1), ("hra", "prodigy", 1), ("hra", "prodigy", 4))
"""Method, optimiser, and factor on the initial parameters."""
LAST = 30
"""Number of steps whose mean loss is compared."""


def main() -> None:
    args = parse_options(__doc__, {"minutes": 10.0}, {}, steps=150, batch_size=4)
    end, losses, rates, rows = time.monotonic() + 60 * args.minutes, {}, {}, []
    for run in RUNS:
        losses[run], rates[run] = train(args, *run, end)
        method, optimizer, factor = run
        loss, steps = sum(losses[run][-LAST:]) / LAST, len(losses[run])
        rows.append((method, optimizer, factor, steps, f"{rates[run]:.2g}", f"{loss:.4f}"))
    last = {run: sum(values[-LAST:]) / LAST for run, values in losses.items()}
    targets = [
        Target(f"{method}: loss with Prodigy ÷ AdamW", last[method, "prodigy", 1] / last[method, "adamw", 1], 1.02)
        for method in ("lora", "hra")
    ]
    growth = rates["hra", "prodigy", 4] / rates["hra", "prodigy", 1]
    targets.append(Target("hra: rate for vectors 4 × as long ÷ rate", growth, 2, at_least=True))
    conditions = f"toybox, {args.steps} steps of batch {args.batch_size}, float32, {args.device}"
    columns = ("method", "optimizer", "length ×", "steps", "peak learning rate", f"loss, last {LAST} steps")
    publish(Report(conditions, columns, rows, targets), args)


def train(
    args: argparse.Namespace, method: str, optimizer: str, factor: float, end: float
) -> tuple[list[float], float]:
    """Return the loss of each step until ``end``, and the highest learning rate."""
    config = configs.parse({
        "name": "bench", "photos": [SUBJECT], "class_noun": "toy", "method": method, "optimizer": optimizer,
        "steps": args.steps, "batch_size": args.batch_size, "device": args.device, "sample_every": 0,
        "sample_prompts": [],
    })  # fmt: skip
    losses, highest = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        session = start_session(load_pipe("toybox", args.device, "float32"), config, Path(folder))
        with torch.no_grad():
            torch._foreach_mul_(list(session.parameters.values()), factor)
        step = TrainingStep(session)
        while session.step < config.steps and (time.monotonic() < end or len(losses) < LAST):
            rate = current_learning_rate(session)
            losses.append(float(step(rate)[0]))
            highest = max(highest, rate * found_learning_rate(session.optimizer))
    return losses, highest


if __name__ == "__main__":
    main()
