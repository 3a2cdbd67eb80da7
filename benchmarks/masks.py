"""Whether a masked loss keeps the photos' background out of an adapter: the judge scores toybox with and without masks.

    python -m benchmarks.masks --sprites DIR [--minutes 60] [--seeds 0 1]

Adapters of each method are trained on three subjects with the Balanced preset: without masks ("off"), with the exact
masks of the subjects ("file"), which is what careful painting gives, and with those that GrabCut finds ("auto"). Two
figures tell of the background: the share of images whose scene is one of the photos' although the prompt names another,
and the CLIP similarity to the nearest photo. A likeness at least as good (subject right) with less of both is better.
Seeds are measured one after another, and --minutes caps the time; an interrupted benchmark continues.
"""

import functools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image

from app.benchmarking.machine import markdown_table
from benchmarks.options import RESULTS
from benchmarks.subject_results import Case, Results, Row, describe_machines, run_missing, shares
from benchmarks.subject_runs import Runner, make_parser, set_up
from hra_diffusion.adapters import registry
from hra_diffusion.evaluation.clip import Clip, default_source, score_images
from hra_diffusion.files import write_text
from hra_diffusion.models.sources import TOYBOX
from toybox.benchmark import PHOTOS, photo_seed
from toybox.rendering import compose_with_mask
from toybox.scenes import find_scene
from toybox.subjects import SUBJECTS, Subject, render_photos, sample_scenes

TRAINED = ("monkey", "robot", "pineapple")
MASKS = ("off", "file", "auto")
COLUMNS = ("subject right", "scene right", "photo's scene", "nearest photo", "seconds")


class MaskRunner(Runner):
    """Trains with the exact masks where a case asks for files, and scores the similarity to the photos."""

    def save_photos(self, case: Case, photos: list[Image.Image], folder: Path) -> None:
        super().save_photos(case, photos, folder)
        if case.settings["mask"] == "file":
            for number, mask in enumerate(render_masks(self.sprites, SUBJECTS[case.subject]), start=1):
                mask.save(folder / f"{number}.mask.png")

    def judge_images(self, subject: Subject, images: Sequence[Image.Image]) -> Row:
        photos = render_photos(self.sprites, subject.name, PHOTOS, photo_seed(subject))
        scores = score_images(toybox_clip(), images, [prompt.text for prompt in subject.prompts], photos)
        return super().judge_images(subject, images) | {"similarity": fmean(s.nearest or 0.0 for s in scores)}


@functools.cache
def toybox_clip() -> Clip:
    return Clip(default_source(TOYBOX))


def render_masks(sprites: Path, subject: Subject) -> list[Image.Image]:
    """Return the masks of a subject's photos, as ``render_photos`` draws them."""
    rng = np.random.default_rng(photo_seed(subject))
    scenes = [find_scene(scene) for scene in sample_scenes(rng, PHOTOS)]
    return [compose_with_mask([subject.make_sprite(sprites)], scene, rng)[1] for scene in scenes]


def figures(row: Row) -> dict[str, float]:
    """Return the figures of COLUMNS for a run."""
    subject = SUBJECTS[row["subject"]]
    photographed = sample_scenes(np.random.default_rng(photo_seed(subject)), PHOTOS)
    asked = [(prompt.scene, seen) for prompt, seen in zip(subject.prompts, row["seen"], strict=True) if prompt.scene]
    leaked = fmean(seen != scene and seen in photographed for scene, seen in asked)
    return {**shares(row), "photo's scene": leaked, "nearest photo": row["similarity"]}


def until(end: float, cases: Iterable[Case]) -> Iterator[Case]:
    """Yield cases until a time of ``time.monotonic``."""
    return (case for case in cases if time.monotonic() < end)


def report(results: Results) -> str:
    """Compare the masks for each method: means (minimum to maximum) over the seeds, as Markdown."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results["rows"]:
        groups.setdefault((row["method"], json.loads(row["changes"])["mask"]), []).append(row)
    lines = [(*key, len(rows), *(cell(rows, column) for column in COLUMNS)) for key, rows in sorted(groups.items())]
    return (
        f"Balanced, {PHOTOS} photos, 25 prompts per run, {results['device']}. {describe_machines(results)}. "
        f"Mean (minimum to maximum) over the seeds.\n\n{markdown_table(('method', 'masks', 'runs', *COLUMNS), lines)}\n"
    )


def cell(rows: Sequence[Row], column: str) -> str:
    """Format the means of a figure over the subjects, by seed."""
    by_seed: dict[int, list[Any]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).append(figures(row)[column])
    means = [fmean(values) for values in by_seed.values() if None not in values]
    form = ".0f" if column == "seconds" else ".3f"
    return f"{fmean(means):{form}} ({min(means):{form}} to {max(means):{form}})" if means else ""


def main() -> None:
    """Run the missing cases and write the report."""
    parser = make_parser(__doc__, RESULTS / "masks.json")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(TRAINED), metavar="NAME")
    parser.add_argument("--methods", nargs="+", default=registry.method_names(), metavar="NAME")
    parser.add_argument("--masks", nargs="+", choices=MASKS, default=MASKS[:2], help="by default off and file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="for a quick trial")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run after these minutes")
    args = parser.parse_args()
    facts, runner = set_up(args, MaskRunner)
    changes = [{"mask": mask} | ({"steps": args.steps} if args.steps else {}) for mask in args.masks]
    cases = [
        Case(subject, method, seed, json.dumps(change, sort_keys=True))
        for seed, subject, method, change in product(args.seeds, args.subjects, args.methods, changes)
    ]
    end = time.monotonic() + 60 * args.minutes
    text = report(run_missing(args.output, facts, until(end, cases), runner.measure))
    write_text(args.output.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
