"""Whether the checkpoint that a run names as the best beats the last one, as scored by the judge.

    python -m benchmarks.best_checkpoint --sprites DIR [--minutes 30]

Each of ten subjects is trained from five photos, one of which is held out for validation, with the Balanced preset.
Every checkpoint generates the subject's 25 prompts of the DreamBooth benchmark from the same noise, and the judge
counts the images with the right subject and those with the right scene (see ``benchmarks.subjects``). The score of a
checkpoint is the product of both shares. Compared are the last checkpoint, the one that the run names, those that its
CLIP scores or its validation losses alone would name, and the one with the highest score. Each subject is saved when it
is done, so that an interrupted benchmark continues; with ``--minutes`` no subject is begun after that time.
"""

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from app.benchmarking.machine import markdown_table
from benchmarks.options import RESULTS
from benchmarks.report import commit_hash
from benchmarks.subject_results import shares
from benchmarks.subject_runs import (
    TRIGGER,
    Runner,
    generate_prompts,
    load_base,
    make_parser,
    set_up,
)
from hra_diffusion import pipeline
from hra_diffusion.evaluation.clip import Score
from hra_diffusion.files import write_text
from toybox.benchmark import PHOTOS, photo_seed
from toybox.subjects import SUBJECTS, render_photos, save_photos
from training import config as configs
from training.loop import train
from training.runs.events import Event, Scored, Validated
from training.runs.run_folder import Run
from training.scoring import choose

CHOICES = ("last", "named by the run", "by CLIP scores", "by validation losses", "highest score")
Row = dict[str, Any]
"""A subject: the score of each checkpoint by step, and the step of each choice."""


def main() -> None:
    """Measure the missing subjects and write the table."""
    parser = make_parser(__doc__, RESULTS / "best_checkpoint.json")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), metavar="NAME")
    parser.add_argument("--method", default="hra")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--changes", type=json.loads, default={}, metavar="JSON", help="changes to the Balanced preset")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no subject after so many minutes")
    args = parser.parse_args()
    start, (_, runner) = time.monotonic(), set_up(args)
    facts = {"method": args.method, "seed": args.seed, "changes": args.changes}
    results: dict[str, Any] = {**facts, "commit": commit_hash(), "rows": {}}
    if args.output.exists():
        results = json.loads(args.output.read_text(encoding="utf-8"))
        if any(results[key] != value for key, value in facts.items()):
            raise SystemExit(f"{args.output} was measured with other settings: choose another --output")
    for subject in args.subjects:
        if subject in results["rows"] or time.monotonic() - start > 60 * args.minutes:
            continue
        results["rows"][subject] = row = measure(runner, subject, args.method, args.seed, args.changes)
        write_text(args.output, json.dumps(results, indent=1))
        print(subject, row, flush=True)
    text = report(results["rows"])
    write_text(args.output.with_suffix(".md"), text)
    print(text)


def measure(runner: Runner, name: str, method: str, seed: int, changes: Mapping[str, Any]) -> Row:
    """Train a subject, and return the scores of its checkpoints and the choices between them."""
    subject, events = SUBJECTS[name], list[Event]()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_photos(render_photos(runner.sprites, name, PHOTOS, photo_seed(subject)), folder / "photos")
        config = configs.parse(
            {"name": "subject", "photos": [folder / "photos"], "class_noun": subject.noun, "trigger": TRIGGER,
             "method": method, "seed": seed, "device": runner.device, "validation": "auto"} | changes
        )  # fmt: skip
        config = config.model_copy(update={"sample_every": config.checkpoint_every})  # scores of every checkpoint
        train(config, folder, [events.append], pipe=load_base(runner.base, runner.device))
        run, scores = Run(folder / "subject"), {}
        pipe = load_base(runner.base, runner.device)
        for checkpoint in run.checkpoints():
            adapter = pipeline.load(pipe, checkpoint / "adapter.safetensors", checkpoint.name).name
            judged = runner.judge_images(subject, generate_prompts(pipe, subject, seed, ((adapter, 1.0),)))
            share = shares({"subject": name, "seconds": None, **judged})
            scores[int(checkpoint.name)] = (share["subject right"] or 0.0) * (share["scene right"] or 0.0)
    return {"scores": scores, "choices": choices(events, scores)}


def choices(events: list[Event], judged: Mapping[int, float]) -> dict[str, int]:
    """Return the step of each choice, from a run's events and the judge's scores of its checkpoints."""
    clip = {event.step: Score(event.subject, event.prompt) for event in events if isinstance(event, Scored)}
    losses = {event.step: event.loss for event in events if isinstance(event, Validated) and event.step in judged}
    last = max(judged)
    named = [choose(*evidence, last) for evidence in ((clip, losses), (clip, {}), ({}, losses))]
    steps = [last, *(best.step if best else last for best in named), max(judged, key=lambda step: judged[step])]
    return dict(zip(CHOICES, steps, strict=True))


def report(rows: Mapping[str, Row]) -> str:
    """Return a table of the choices: mean score, and the mean difference from the last checkpoint."""
    lines = []
    for choice in CHOICES:
        pairs = [(score_of(row, choice), score_of(row, "last")) for row in rows.values()]
        gains = [own - last for own, last in pairs]
        error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
        better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
        means = f"{fmean(own for own, _ in pairs):.3f}", f"{fmean(gains):+.3f} ± {error:.3f}"
        lines.append((choice, *means, better, worse, len(gains) - better - worse))
    columns = ("checkpoint", "subject right × scene right", "difference from the last", "better", "worse", "equal")
    title = f"{len(rows)} subjects; mean, and mean difference with its standard error."
    return f"{title}\n\n{markdown_table(columns, lines)}\n"


def score_of(row: Row, choice: str) -> float:
    """Return the judge's score of the checkpoint that a choice names; a results file has steps as text."""
    scores = {int(step): score for step, score in row["scores"].items()}
    return scores[row["choices"][choice]]


if __name__ == "__main__":
    main()
