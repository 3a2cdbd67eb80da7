"""Results of runs on subjects: their cases, the JSON file that collects them, and the shares of correct images."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from app.benchmarking.machine import describe_machine, machine_facts
from benchmarks.report import commit_hash
from hra_diffusion.files import write_text
from toybox.subjects import SUBJECTS

CEILING, BASE = "renders", "base"
"""Methods that train no adapter: renders of the subject, and the base model."""
COLUMNS = {
    "subject right": 0.80, "subject right in scenes": None, "subject right with attributes": None, "scene right": 0.85,
    "attribute right": None, "seconds": 90.0,
}  # fmt: skip
"""Figures of a run and their targets: a minimum share of the images, a maximum of seconds per run."""

Row = dict[str, Any]
"""A finished run: its case, training seconds, and the judge's predictions for the image of each prompt.

"nearest": name of the nearest object or subject; "seen": the scene, or the attribute if the prompt names one.
"""
Results = dict[str, Any]
"""Content of a results file: facts common to all runs, the sessions that measured them, and the rows."""


@dataclass(frozen=True)
class Case:
    """One run: name of the subject, method, seed, and the changes to the Balanced preset as JSON."""

    subject: str
    method: str
    seed: int
    changes: str = "{}"

    @classmethod
    def of(cls, row: Row) -> "Case":
        """Return the case of a finished run."""
        return cls(row["subject"], row["method"], row["seed"], row["changes"])

    @property
    def settings(self) -> dict[str, Any]:
        """Changes to the preset, by configuration field."""
        return json.loads(self.changes)

    @property
    def summary(self) -> str:
        """The changes as text: "learning rate 0.002, rank 4"."""
        settings = {key: value for key, value in self.settings.items() if key != "options"}
        settings |= self.settings.get("options", {})
        return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items())


def run_missing(
    output: Path, facts: Mapping[str, object], cases: Iterable[Case], measure: Callable[[Case], Row]
) -> Results:
    """Measure the cases that the file lacks, save it after each, and return its content.

    Raises ValueError if the file was measured with another base model, judge, presets or device.
    """
    results: Results = {**facts, "sessions": [], "rows": []}
    if output.exists():
        results = json.loads(output.read_text(encoding="utf-8"))
        if other := [key for key, value in facts.items() if results.get(key) != value]:
            raise ValueError(f"{output} was measured with another {', '.join(other)}: choose another --output")
    finished = {Case.of(row) for row in results["rows"]}
    session = {"commit": commit_hash(), "machine": machine_facts(), "runs": 0}
    for case in (case for case in cases if case not in finished):
        results["rows"].append(measure(case))
        if not session["runs"]:
            results["sessions"].append(session)
        session["runs"] += 1
        write_text(output, json.dumps(results, indent=1, ensure_ascii=False))
        summary = {**asdict(case), **shares(results["rows"][-1])}
        print(" ".join(f"{key}={value}" for key, value in summary.items()), flush=True)
    return results


def describe_machines(results: Results) -> str:
    """Describe the machines that were measured on, each with its number of runs."""
    runs: dict[str, int] = {}
    for session in results["sessions"]:
        name = describe_machine({fact: value for fact, value in session["machine"].items() if fact != "load average"})
        runs[name] = runs.get(name, 0) + session["runs"]
    return "; ".join(f"{name} ({count} runs)" for name, count in runs.items())


def shares(row: Row) -> dict[str, float | None]:
    """Return the figures of COLUMNS for a run: shares of its images with the right content, and its seconds."""
    prompts = SUBJECTS[row["subject"]].prompts
    subject = [(prompt, name == row["subject"]) for prompt, name in zip(prompts, row["nearest"], strict=True)]
    seen = list(zip(prompts, row["seen"], strict=True))
    return {
        "subject right": fmean(right for _, right in subject),
        "subject right in scenes": fmean(right for prompt, right in subject if prompt.scene),
        "subject right with attributes": fmean(right for prompt, right in subject if prompt.attribute),
        "scene right": fmean(predicted == prompt.scene for prompt, predicted in seen if prompt.scene),
        "attribute right": fmean(predicted == prompt.attribute for prompt, predicted in seen if prompt.attribute),
        "seconds": row["seconds"],
    }


def seed_means(rows: Sequence[Row], column: str) -> list[float]:
    """Return the mean of a figure over the runs of each seed that measured it."""
    values = [(row["seed"], shares(row)[column]) for row in rows]
    seeds = sorted({seed for seed, value in values if value is not None})
    return [fmean(value for other, value in values if other == seed and value is not None) for seed in seeds]
