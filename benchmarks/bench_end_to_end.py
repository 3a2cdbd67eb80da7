"""Whole runs, from photos to a saved adapter, against a plain diffusers + PEFT DreamBooth loop that caches nothing.

    python -m benchmarks.bench_end_to_end [--device cuda] [--steps 100] [--rounds 3] [--large-rounds 3]

On toybox both run in full, including loading the base model, after a warm-up of a few steps; they take turns in going
first, and train the text encoder, too. They start from the same adapter and use the same noise, so their losses must
agree. At the size of Stable Diffusion 1.5, with random weights and a frozen text encoder, single steps are interleaved,
and the duration of a run with the Quick preset is computed from a step and the time our trainer needs to fill its
caches. With --whole-steps such a run is measured, too: a process of the command line, from its start to its end.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from app.benchmarking.timing import median_with_range, ratios, time_interleaved
from app.benchmarking.workloads import weight_sharing_copy
from benchmarks.models import load_pipe
from benchmarks.options import parse_options
from benchmarks.plain_dreambooth import PEFT_NAMES, plain_steps
from benchmarks.report import BASES, Report, Target, publish
from benchmarks.steps import start_session, train_config, trainer_step
from training import config as configs
from training.config import TrainConfig
from training.loop import train
from training.presets import defaults
from training.runs.events import Event, Step

TOYBOX_SPEEDUP, LARGE_SPEEDUP, MAX_LOSS_DIFFERENCE, WARM_UP_STEPS = 1.0, 1.4, 0.01, 3

Part = tuple[list[tuple[object, ...]], list[Target], dict[str, Any]]
"""Rows, targets and raw values of one comparison."""


def main() -> None:
    cpu = {"resolution": 256, "rounds": 3, "whole_steps": 0}
    cuda = {"resolution": 512, "dtype": "bfloat16", "rounds": 0, "whole_steps": 400}
    args = parse_options(__doc__, cpu, cuda, steps=100, rank=8, large="sd1", large_rounds=3)
    parts = [compare_runs(args, method) for method in PEFT_NAMES if args.rounds]
    if args.whole_steps:
        parts.append(whole_run(args))
    if args.large_rounds:
        pipe = load_pipe(args.large, args.device, args.dtype)
        parts += [compare_steps(args, method, pipe) for method in PEFT_NAMES]
    rows, targets = ([item for part in parts for item in part[index]] for index in (0, 1))
    raw = {name: values for part in parts for name, values in part[2].items()}
    columns = (
        "run",
        "rounds",
        "ours, s",
        "plain diffusers + PEFT, s",
        "plain ÷ ours",
        "relative difference of the mean losses",
    )
    conditions = (
        f"rank {args.rank}, {args.dtype}, {args.device}; "
        f"{'toybox 128 px, whole runs in turn; ' if args.rounds else ''}"
        f"{BASES[args.large]}, {args.resolution} px, batch 1, interleaved steps"
    )
    publish(Report(conditions, columns, rows, targets, raw=raw), args)


def compare_runs(args: argparse.Namespace, method: str) -> Part:
    """Compare whole runs on toybox, and their losses."""
    config = train_config(args, method=method, options={"rank": args.rank}, resolution=128, batch_size=8,
                          steps=args.steps, checkpoint_every=args.steps, text_encoder_lr_scale=1)  # fmt: skip
    losses: dict[str, list[float]] = {}

    def ours(config: TrainConfig = config) -> None:
        losses["ours"] = train_and_collect_losses(config)

    def plain(config: TrainConfig = config) -> None:
        with tempfile.TemporaryDirectory() as folder:
            pipe = load_pipe("toybox", args.device, args.dtype)
            losses["plain"] = list(plain_steps(pipe, config, Path(folder) / "plain"))

    short = config.model_copy(update={"steps": WARM_UP_STEPS})
    ours(short)
    plain(short)
    variants = {"ours": ours, "plain": plain}
    seconds = time_interleaved(variants, args.rounds, warm_up=False, minutes=args.minutes, alternate=True)
    speedup = ratios(seconds["plain"], seconds["ours"])
    difference = abs(sum(losses["ours"]) / sum(losses["plain"]) - 1)
    largest = max(abs(a / b - 1) for a, b in zip(losses["ours"], losses["plain"], strict=True))
    name = f"toybox, {method}, {args.steps} steps of 8"
    row = (name, len(speedup), *map(median_with_range, seconds.values()), median_with_range(speedup, ".2f"))
    targets = [
        Target.of(f"toybox, {PEFT_NAMES[method]} plain ÷ ours", speedup, TOYBOX_SPEEDUP, at_least=True),
        Target(f"toybox, {method}, relative difference of the mean losses", difference, MAX_LOSS_DIFFERENCE),
    ]
    raw = {name: seconds | {f"losses, {variant}": values for variant, values in losses.items()}}
    return [(*row, f"{difference:.1e} ({largest:.1e} at one step)")], targets, raw


def compare_steps(args: argparse.Namespace, method: str, pipe: Any) -> Part:
    """Compare steps at the size of Stable Diffusion 1.5, and whole runs computed from them."""
    config = large_config(args, args.large, method, 1000)
    # our trainer moves its VAE and text encoder off the device, the plain loop needs them there
    offloaded = {name: copy.deepcopy(getattr(pipe, name)) for name in ("vae", "text_encoder")}
    ours, theirs = (
        type(pipe)(**pipe.components | {"unet": weight_sharing_copy(pipe.unet)} | parts) for parts in (offloaded, {})
    )
    with tempfile.TemporaryDirectory() as folder:
        session = start_session(ours, config, Path(folder))
        loop = plain_steps(theirs, config, Path(folder) / "plain")
        variants = {"ours": trainer_step(session), "plain": lambda: next(loop)}
        seconds = time_interleaved(variants, args.large_rounds, minutes=args.minutes)
    caching, count = session.timer.phases["cache"], defaults("sd1", method, "quick")["steps"]
    our_run, plain_run = (count * statistics.median(rounds) for rounds in seconds.values())
    speedup = [count * plain / (caching + count * ours) for ours, plain in zip(*seconds.values(), strict=True)]
    step_speedup = ratios(seconds["plain"], seconds["ours"])
    name = f"SD 1.5, {method}, one step"
    rows = [
        (name, len(step_speedup), *map(median_with_range, seconds.values()), median_with_range(step_speedup, ".2f"),
         ""),
        (f"SD 1.5, {method}, {count} steps, computed; ours caches for {caching:.0f} s first", "",
         f"{caching + our_run:.0f}", f"{plain_run:.0f}", median_with_range(speedup, ".2f"), ""),
    ]  # fmt: skip
    target = Target.of(f"SD 1.5, {PEFT_NAMES[method]} plain ÷ ours, computed", speedup, LARGE_SPEEDUP, at_least=True)
    return rows, [target], {name: seconds}


def whole_run(args: argparse.Namespace, method: str = "hra") -> Part:
    """Measure a process that trains an adapter with ``hra-diffusion train`` from a base model in a folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        load_pipe(args.large, args.device, args.dtype).save_pretrained(folder / "base")
        config = large_config(args, str(folder / "base"), method, args.whole_steps)
        configs.write(config, folder / "run.yaml")
        command = ["train", "--config", str(folder / "run.yaml"), "--output", str(folder / "runs"), "--quiet"]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "app.cli", *command], check=True)
        seconds = time.perf_counter() - start
        state = json.loads((folder / "runs" / config.name / "state.json").read_text(encoding="utf-8"))
    phases = ", ".join(f"{phase} {spent:.3g} s" for phase, spent in state["seconds"].items())
    name = f"SD 1.5, {method}, {args.whole_steps} steps, from the start of the process to its end ({phases})"
    return [(name, 1, f"{seconds:.3g}", "", "", "")], [], {"whole run": state["seconds"] | {"process": seconds}}


def large_config(args: argparse.Namespace, base: str, method: str, steps: int) -> TrainConfig:
    """Return the configuration of a run at the size of Stable Diffusion 1.5, with a frozen text encoder."""
    return train_config(args, method=method, options={"rank": args.rank}, resolution=args.resolution, base=base,
                        batch_size=1, steps=steps)  # fmt: skip


def train_and_collect_losses(config: TrainConfig) -> list[float]:
    """Train with our trainer, from loading the base model to the saved adapter, and return the loss of each step."""
    losses: list[float] = []

    def listen(event: Event) -> None:
        if isinstance(event, Step):
            losses.append(event.loss)

    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder), [listen])
    return losses


if __name__ == "__main__":
    main()
