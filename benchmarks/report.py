"""The result of a benchmark: figures with targets, a table, and where and how it was measured, as JSON."""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.benchmarking.machine import describe_machine, machine_facts, markdown_table
from app.benchmarking.timing import MIN_ROUNDS, median_with_range, ratios
from hra_diffusion.files import write_text

BASES = {
    "toybox": "toybox",
    "sd1": "Stable Diffusion 1.5 (random weights)",
    "sdxl": "SDXL (random weights)",
    "klein": "FLUX.2 klein base 4B (random weights)",
    "shallow-klein": "a single block of FLUX.2 klein base 4B (random weights)",
    "narrow-klein": "2 blocks of FLUX.2 klein at a twelfth of their width",
    "narrow-sd1": "Stable Diffusion 1.5's layers at a tenth of their width",
    "narrow-sdxl": "SDXL's layers at a tenth of their width",
}
"""Descriptions of the base models."""


@dataclass(frozen=True)
class Target:
    """A measured figure and its limit. ``rounds``: the values that it is the median of; empty if measured once."""

    what: str
    value: float
    limit: float
    at_least: bool = False
    rounds: Sequence[float] = ()

    @classmethod
    def of(cls, what: str, rounds: Sequence[float], limit: float, at_least: bool = False) -> "Target":
        """Compare the median of the rounds with a limit."""
        return cls(what, statistics.median(rounds), limit, at_least, rounds)

    @property
    def verdict(self) -> str:
        """ "met", "missed", or "undecided" if there are too few rounds."""
        if 0 < len(self.rounds) < MIN_ROUNDS:
            return "undecided"
        return "met" if (self.value >= self.limit if self.at_least else self.value <= self.limit) else "missed"

    @property
    def figure(self) -> str:
        """The value as text, with the minimum and maximum of its rounds."""
        return median_with_range(self.rounds) if len(self.rounds) > 1 else f"{self.value:.3g}"

    @property
    def mark(self) -> str:
        """The verdict as a symbol: ✓, ✗ or ?."""
        return {"met": "✓", "missed": "✗", "undecided": "?"}[self.verdict]

    @property
    def condition(self) -> str:
        """The limit with its comparison: "≤ 1.1"."""
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"

    def __str__(self) -> str:
        return f"{self.what} {self.figure}: {self.verdict}, {self.condition}"


@dataclass(frozen=True)
class Report:
    """Result of a benchmark: a table, figures with targets, notes. Field names are the keys of the JSON file."""

    conditions: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    targets: Sequence[Target] = ()
    notes: Sequence[str] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)


def read_targets(result: Mapping[str, Any]) -> list[Target]:
    """Return the targets of a result read from JSON; earlier versions call them bars."""
    return [Target(**target) for target in result["targets" if "targets" in result else "bars"]]


def publish(report: Report, args: argparse.Namespace) -> None:
    """Print a report with the machine it was measured on, and write it as JSON named after benchmark and device."""
    name, machine = Path(sys.argv[0]).stem, machine_facts()
    command = f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}".strip()
    version = {"commit": commit} if (commit := commit_hash()) else {}
    result = {"command": command, **version, "machine": machine, **dataclasses.asdict(report)}
    print(f"{command}\n{describe_machine(machine)}\n{report.conditions}\n")
    print(markdown_table(report.columns, report.rows))
    print("\n".join(["", *map(str, report.targets), *report.notes]))
    path = args.output / f"{name}{'-cuda' * (args.device == 'cuda')}.json"
    write_text(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def publish_ratios(
    args: argparse.Namespace,
    seconds: Mapping[str, Sequence[float]],
    baseline: Callable[[str], str],
    columns: Sequence[str],
    limits: Mapping[str, float],
    form: str = ".2f",
    more: Sequence[Target] = (),
) -> None:
    """Publish the seconds of each variant divided by those of its ``baseline``.

    ``limits``: limits of the ratios, by variant. ``more``: further targets.
    """
    relative = {name: ratios(rounds, seconds[baseline(name)]) for name, rounds in seconds.items()}
    rows = [
        (name, median_with_range(rounds), median_with_range(relative[name], form)) for name, rounds in seconds.items()
    ]
    targets = [
        Target.of(f"{name} {columns[-1]}", relative[name], limit)
        for name, limit in limits.items()
        if name != baseline(name)
    ]
    conditions = describe_conditions(args, describe_inputs(args), seconds)
    publish(Report(conditions, columns, rows, [*targets, *more], raw=seconds), args)


def describe_inputs(args: argparse.Namespace) -> str:
    """Describe the shapes of the UNet's inputs."""
    batch = f"batch {args.batch_size}" if "batch_size" in args else "one denoising step with guidance (batch 2)"
    return f"rank {args.rank}, {args.side}×{args.side} latents, {batch}"


def describe_conditions(args: argparse.Namespace, inputs: str, seconds: Mapping[Any, Sequence[float]]) -> str:
    """Describe base model, inputs, dtype, device and rounds in a sentence."""
    rounds = len(next(iter(seconds.values())))
    return f"{BASES[args.base]}, {inputs}, {args.dtype}, {args.device}; {rounds} interleaved rounds"


def commit_hash(folder: Path = Path(__file__).parent.parent) -> str:
    """Return the short commit hash, with "-dirty" if code other than results changed.

    Outside a Git checkout it is the value of the environment variable COMMIT, or "".
    """
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    except FileNotFoundError:  # Git is not installed
        return os.environ.get("COMMIT", "")
    if head.returncode:
        return os.environ.get("COMMIT", "")
    code = [":/", ":(top,exclude)benchmarks/results", ":(top,exclude)docs/benchmarks.md"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code]).returncode
    return head.stdout.strip() + ("-dirty" if changed else "")
