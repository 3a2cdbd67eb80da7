"""Write docs/benchmarks.md from the results: ``python -m benchmarks.tables``."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.benchmarking.machine import describe_machine, markdown_table
from benchmarks.claims import CLAIMS, Claim
from benchmarks.options import RESULTS
from benchmarks.report import read_targets
from hra_diffusion.files import write_text

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
MEMORY_PLOT = PAGE.parent / "images" / "page-memory.svg"
NOT_MEASURED = "not measured"
DEVICES = {"CPU": "", "GPU": "-cuda"}
"""Devices, and the suffixes of their result files."""

INTRODUCTION = """\
<!-- made by python -m benchmarks.tables from benchmarks/results -->

# Benchmarks

Each claim about speed, memory and quality, its target, what was measured, and the command that measures it.
`make bench` runs all benchmarks of speed and memory; `hra-diffusion bench` prints a short table for your own machine.

Variants take turns within each round, and ratios are medians of the ratios within rounds, with the minimum and the
maximum in parentheses: other load on the machine affects all variants of a round alike. The median decides between
✓ (target met) and ✗ (missed); fewer than three rounds decide nothing (?).

Ratios to PEFT and diffusers hold for the versions named with each measurement.

The GPU figures were taken without CUDA graphs, with an earlier version, while other runs kept 13 of the machine's 16
cores busy; their targets are those of that version. `benchmarks/gpu.sh` repeats all of them within eight minutes. With
batches this small a GPU waits for kernel launches, and every method launches some of its own. That is the extra cost
per step and image on the GPU; the CPU figures do not show it, the operations per layer do."""

SUBJECTS = """\
## Learning a subject

Ten subjects that the embedded base model has not been trained on are each trained from five photos with the Balanced
preset, and generated with the 25 prompts of the DreamBooth benchmark, for three seeds. A judge, a classifier with its
own weights and training images, decides which of 324 known objects and ten subjects an image is closest to, and
whether the scene is right. *renders* are real renders of the subjects (the judge's ceiling); *base* is the base model
without an adapter. Command: `python -m benchmarks.subjects --sprites DIR`; see `--help` for what it needs. What the
result means for Stable Diffusion is not known."""

SWEEP = """\
## Settings tried

The sweep behind the embedded base model's presets: learning rates at rank 16 for each method, scored by an earlier
checkpoint of the judge.
Command: `python -m benchmarks.sweep --sprites DIR`."""


MASKS = """\
## Masks

Subjects trained without masks and with exact masks of the photos (see `--mask`). *photo's scene*: share of the images
whose scene is one of the photos' although the prompt names another, which masks are meant to prevent.
Command: `python -m benchmarks.masks --sprites DIR`."""

BEST_CHECKPOINT = """\
## The best checkpoint

Whether the checkpoint that a run with validation names as the best beats the last one, by the judge.
Command: `python -m benchmarks.best_checkpoint --sprites DIR`."""

FUSION = """\
## Two subjects in one image

Ten subjects, trained apart, in nine pairs: both adapters of a method act together, as "a photo of a sks toy next to a
qwe animal", from the same noise. The judge names the nearest of all objects in the left and in the right half.
*Compose* applies one adapter after the other, which for LoRA is their sum; *geodesic* combines the rotations on each
layer (see `--fusion`). *One twice*: the same subject of the pair in both halves.
Command: `python -m benchmarks.fusion --sprites DIR --seeds 0 --images 16`. One training seed is measured. In all
three ways the features of both subjects mix in each half."""

PIVOTAL = """\
## Pivotal tuning

Subjects trained with and without the trigger's own embedding (`--train-trigger`), on one thread of a processor.
Command: `hra-diffusion benchmark toybox --methods hra lora --variants benchmarks/pivotal.yaml --subjects monkey robot
pineapple --seeds 0 --name pivotal`. The embedding shows the subject more often, and the prompt's scene less often."""


def page(results: Path = RESULTS) -> str:
    """Return docs/benchmarks.md: a summary table, a section for each claim, and the judge's tables."""
    results_by_claim = {
        claim.name: {device: _read(results / f"{claim.name}{suffix}.json") for device, suffix in DEVICES.items()}
        for claim in CLAIMS
    }
    summary = [(_link(claim), claim.target, *map(_verdicts, results_by_claim[claim.name].values())) for claim in CLAIMS]
    sections = [_section(claim, results_by_claim[claim.name]) for claim in CLAIMS]
    tables = {SUBJECTS: "subjects", SWEEP: "sweep", MASKS: "masks", BEST_CHECKPOINT: "best_checkpoint",
              FUSION: "fusion", PIVOTAL: "pivotal"}  # fmt: skip
    judged = [f"{about}\n\n{_stored(results / f'{name}.md')}" for about, name in tables.items()]
    return (
        "\n\n".join([INTRODUCTION, markdown_table(("claim", "target", *DEVICES), summary), *sections, *judged]) + "\n"
    )


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _stored(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.exists() else NOT_MEASURED.capitalize() + "."


def _link(claim: Claim) -> str:
    """Return a link to the claim's section, by the anchor that MkDocs and GitHub give its heading."""
    return f"[{claim.title}](#{re.sub(r'[^a-z0-9 ]', '', claim.title.lower()).replace(' ', '-')})"


def _verdicts(result: dict[str, Any] | None) -> str:
    """Count the targets that are met and undecided; name the base model if it isn't the benchmark's default."""
    if result is None:
        return NOT_MEASURED
    verdicts = [target.verdict for target in read_targets(result)]
    base = re.search(r"--(?:base|large)[ =](\S+)", result["command"])
    undecided = f", {count} undecided" if (count := verdicts.count("undecided")) else ""
    return (f"on {base[1]}: " if base else "") + f"{verdicts.count('met')} of {len(verdicts)} met{undecided}"


def _section(claim: Claim, results: dict[str, dict[str, Any] | None]) -> str:
    parts = [_measurement(device, result) for device, result in results.items() if result]
    return "\n\n".join(
        [f"## {claim.title}", claim.about, *(parts or [f"Not measured: `python -m benchmarks.{claim.name}`."])]
    )


def _measurement(device: str, result: dict[str, Any]) -> str:
    """Return one device's command, conditions and machine, its figures with their targets, and the whole table."""
    commit = f" Commit {result['commit']}." if "commit" in result else ""
    figures = [(target.what, f"**{target.figure}**", target.condition, target.mark) for target in read_targets(result)]
    return "\n\n".join(
        [
            f"**{device}**: `{result['command']}`",
            f"{result['conditions']}. {describe_machine(result['machine'])}.{commit}",
            *([markdown_table(("figure", "measured", "target", ""), figures)] if figures else []),
            markdown_table(result["columns"], result["rows"]),
            *result["notes"],
        ]
    )


def memory_plot(mebibytes: Sequence[float], width: int = 640, height: int = 200, margin: int = 34) -> str:
    """Return the memory of the page under load, from equally spaced measurements, as an SVG with an axis from 0."""
    top = max(mebibytes) * 1.1
    across, down = (width - 2 * margin) / (len(mebibytes) - 1), (height - 2 * margin) / top
    points = [f"{margin + across * x:.1f},{height - margin - down * y:.1f}" for x, y in enumerate(mebibytes)]
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"
  font-family="sans-serif" font-size="11">
<rect width="{width}" height="{height}" fill="white"/>
<path d="M{margin} {margin}V{height - margin}H{width - margin}" fill="none" stroke="#888"/>
<text x="{margin}" y="{margin - 10}">memory of the page in MiB, highest {max(mebibytes):.0f}</text>
<text x="{margin - 6}" y="{height - margin}" text-anchor="end">0</text>
<text x="{width - margin}" y="{height - margin + 16}" text-anchor="end">end of the load</text>
<polyline points="{" ".join(points)}" fill="none" stroke="#c2481b" stroke-width="2"/>
</svg>
"""


if __name__ == "__main__":
    write_text(PAGE, page())
    if served := _read(RESULTS / "bench_page.json"):
        write_text(MEMORY_PLOT, memory_plot(served["raw"]["memory_mib"]))
