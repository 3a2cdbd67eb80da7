"""The README's tables, made from the results: ``python -m benchmarks.tables`` writes them there."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, Bar
from hra_diffusion.files import write_text
from training.memory.measure import in_words, markdown

README = Path(__file__).resolve().parent.parent / "README.md"
NOT_MEASURED = "not measured"
MARKS = {"met": "✓", "missed": "✗", "undecided": "?"}


@dataclass(frozen=True)
class Claim:
    """What a benchmark is to show."""

    name: str
    claim: str
    bar: str


CLAIMS = (
    Claim("bench_step", "Every method costs what LoRA costs", "a step ≤ 1.10 of LoRA's"),
    Claim("bench_peft", "Less than PEFT", "HRA ≤ 0.40 of the time (GPU 0.2) and memory, LoRA ≤ 1.0"),
    Claim("bench_floor", "Near the floor", "a step ≤ 1.15 of the frozen UNet's own passes"),
    Claim("bench_end_to_end", "Faster end to end, same losses", "≥ 1.5 × a plain diffusers + PEFT loop"),
    Claim("bench_memory", "Little memory", "SD 1.5 at 512 px ≤ 4.0 GiB, SDXL at 1024 px ≤ 10 GiB"),
    Claim("bench_side_by_side", "Side by side in one batch", "pictures/s ≥ 1.0 × one after another (GPU 2), equal"),
    Claim("bench_switching", "Quick switching", "activate ≤ 10 ms, load ≤ 0.5 of diffusers'"),
    Claim("bench_inference", "Free to use", "live ≤ 1.05 of the base, merged ≤ 1.01"),
    Claim("bench_growth", "Grows gently", "at most linear in rank, flat in adapters loaded and photos"),
    Claim("bench_contention", "Shares a CPU", "alone ≤ 1.10 of the default, two runs ≤ 2, draw + run ≥ 0.4 each"),
    Claim("bench_start", "Starts at once", "--help ≤ 0.6 s without torch, page ≤ 8 s, first picture ≤ 5 s later"),
)


def costs(results: Path = RESULTS) -> str:
    """The section on speed and memory: the claims with what was found, then the table of each benchmark run."""
    found = {
        (claim.name, device): _read(results / f"{claim.name}{device}.json")
        for claim in CLAIMS
        for device in ("", "-cuda")
    }
    rows = []
    for claim in CLAIMS:
        own = found[claim.name, ""], found[claim.name, "-cuda"]
        commands = [result["command"] for result in own if result] or [f"python -m benchmarks.{claim.name}"]
        rows.append((claim.claim, claim.bar, *map(_figures, own), "<br>".join(f"`{command}`" for command in commands)))
    parts = [markdown(("claim", "bar", "CPU", "GPU (`--device cuda`)", "command"), rows)]
    parts += [_details(claim, result) for claim in CLAIMS for d in ("", "-cuda") if (result := found[claim.name, d])]
    return marked("speed and memory", *parts)


def taught(results: Path = RESULTS) -> str:
    """The section on teaching toybox subjects, as benchmarks/subjects wrote it."""
    told = results / "subjects.md"
    return marked("teaching toybox", told.read_text(encoding="utf-8").strip() if told.exists() else NOT_MEASURED)


def marked(name: str, *parts: str) -> str:
    """A section of the README between its marks."""
    start = f"<!-- {name}: made by python -m benchmarks.tables from benchmarks/results -->"
    return "\n\n".join([start, *parts, f"<!-- end of {name} -->"])


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _figures(result: dict[str, Any] | None) -> str:
    """The figures a claim stands by, each with whether its bar is met; first of all if they are of another base."""
    if result is None:
        return NOT_MEASURED
    bars = [Bar(**bar) for bar in result["bars"]]
    base = re.search(r"--(?:base|large)[ =](\S+)", result["command"])
    said = "; ".join(f"{bar.what} **{bar.figure}** {MARKS[bar.verdict]}" for bar in bars) or "see below; no bar"
    return f"on {base[1]}: {said}" if base else said


def _details(claim: Claim, result: dict[str, Any]) -> str:
    machine = in_words(result["machine"])
    made_by = f" Commit {result['commit']}." if "commit" in result else ""
    table = markdown(result["columns"], result["rows"])
    notes = "".join(f"\n\n{note}" for note in result["notes"])
    head = f"<details><summary>{claim.claim}: <code>{result['command']}</code></summary>"
    return f"{head}\n\n{result['conditions']}. {machine}.{made_by}\n\n{table}{notes}\n\n</details>"


def replaced(readme: str, new: str) -> str:
    """The README with a section put in place of the old one, which bears the same marks."""
    start, *_, end = new.splitlines()
    before, rest = readme.split(start)
    return before + new + rest.split(end)[1]


if __name__ == "__main__":
    said = README.read_text(encoding="utf-8")
    for made in (costs(), taught()):
        said = replaced(said, made)
    write_text(README, said)
