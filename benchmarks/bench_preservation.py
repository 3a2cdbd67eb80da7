"""Prior preservation by class images and by the base model's own output: likeness, drift and seconds on toybox.

    python -m benchmarks.bench_preservation [--device cuda] [--steps 280] [--seeds 3] [--minutes 25]

Each subject is trained without preservation and with either kind, from the same seeds. Likeness is the CLIP similarity
of the subject's pictures to its photos, drift the CLIP distance between pictures of its class with and without the
adapter, both by toybox's own CLIP model. Cases that would begin after ``--minutes`` are left out.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from app.benchmarking.timing import median_with_range
from benchmarks.options import parse_options
from benchmarks.report import Report, Target, publish
from hra_diffusion.comparison.compare import Variant, compare
from hra_diffusion.evaluation.clip import Clip, default_source
from hra_diffusion.generation.requests import Settings
from hra_diffusion.models.loading import load_base
from hra_diffusion.models.sources import ASSETS, TOYBOX
from training import config as configs
from training.data.dataset import load_dataset
from training.loop import train
from training.runs.events import Event, Finished

SUBJECTS = {"robot": "toy", "octopus": "toy"}
KINDS = {
    "none": {"prior_loss_weight": 0.0},
    "class images": {"prior_loss_weight": 1.0, "preservation": "class-images"},
    "base output": {"prior_loss_weight": 1.0, "preservation": "base-output"},
}
PROMPTS = ("a photo of a {subject}", "a {subject} in the snow", "a {subject} on the beach")
NAME = "subject"


def main() -> None:
    defaults = {"steps": 280, "seeds": 3, "minutes": 25.0, "method": "hra", "images": 4}
    args = parse_options(__doc__, defaults, defaults)
    figures: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
    end = time.monotonic() + 60 * args.minutes
    clip = Clip(default_source(TOYBOX))
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            for subject in SUBJECTS:
                if time.monotonic() < end:
                    for kind in KINDS:
                        figures[kind].append(measure(args, kind, subject, seed, Path(folder), clip))
    publish(report(args, figures), args)


def measure(
    args: argparse.Namespace, kind: str, subject: str, seed: int, folder: Path, clip: Clip
) -> tuple[float, float, float]:
    """Train a subject and return likeness, drift and the seconds of class images and steps."""
    photos, events = ASSETS / "subjects" / subject, list[Event]()
    values = {"name": NAME, "photos": [photos], "class_noun": SUBJECTS[subject], "method": args.method, "seed": seed,
              "steps": args.steps, "checkpoint_every": args.steps, "device": args.device, "sample_prompts": [],
              "num_class_images": 32}  # fmt: skip
    pipe = load_base(TOYBOX, args.device)
    with tempfile.TemporaryDirectory(dir=folder) as output:
        train(configs.parse(values | KINDS[kind]), Path(output), [events.append], pipe=pipe)
    phases = next(event.phases for event in events if isinstance(event, Finished))
    variant = Variant(kind, {NAME: 1.0}, f"sks {SUBJECTS[subject]}", SUBJECTS[subject])
    references = [photo.image for photo in load_dataset([photos], 128).photos]
    seeds = range(args.images)
    found = compare(pipe, [variant], PROMPTS, seeds, Settings(steps=15), references, clip=clip, drift=True)
    scores = [sample.score for sample in found.samples if sample.score]
    means = (statistics.mean(getattr(score, name) or 0.0 for score in scores) for name in ("subject", "drift"))
    return *means, phases["train"] + phases.get("class images", 0.0)


def report(args: argparse.Namespace, figures: dict[str, list[tuple[float, float, float]]]) -> Report:
    """Return the table of all kinds, and base output compared with class images."""
    columns: dict[str, list[Sequence[float]]] = defaultdict(list)
    for kind, rows in figures.items():
        columns[kind] = list(zip(*rows, strict=True))
    rows = [(kind, *map(median_with_range, own)) for kind, own in columns.items()]
    ratios = [
        [ours / theirs for ours, theirs in zip(*pair, strict=True)]
        for pair in zip(columns["base output"], columns["class images"], strict=True)
    ]
    targets = [
        Target.of("base output ÷ class images, likeness", ratios[0], 0.97, at_least=True),
        Target.of("base output ÷ class images, drift", ratios[1], 1.0),
        Target.of("base output ÷ class images, seconds", ratios[2], 1.0),
    ]
    conditions = (
        f"toybox, {', '.join(SUBJECTS)}, {args.method}, {args.steps} steps, {len(figures['none'])} runs each; the "
        f"seconds include generating 32 class images; {args.device}"
    )
    return Report(conditions, ("preservation", "likeness", "drift", "seconds"), rows, targets, raw=figures)


if __name__ == "__main__":
    main()
