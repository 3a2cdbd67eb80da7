"""How well each method teaches toybox subjects that it has never seen, as scored by the judge.

    python -m benchmarks.subjects --sprites DIR [--sheets DIR]

Each of ten subjects is trained from five photos with the Balanced preset, then generated with its 25 prompts of the
DreamBooth benchmark. The judge, a classifier with its own weights and training images (judge.safetensors beside this
file, made by ``python -m toybox judge``), decides for every image
- whether it shows the subject: whether the mean features of this subject are the nearest, among those of all known
  objects and all ten subjects, each averaged over 8 new renders;
- whether the scene, or otherwise the attribute, that the prompt names is right.
Renders of the subjects ("renders") give the judge's ceiling, the untrained base model ("base") the chance level. Each
run is saved when it ends, so an interrupted benchmark continues.
"""

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from app.benchmarking.machine import describe_machine, machine_facts, markdown_table
from benchmarks.common import RESULTS, Target, commit
from hra_diffusion.adapters import registry
from hra_diffusion.adapters.state import ActiveAdapters
from hra_diffusion.files import write_text
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate_batch
from hra_diffusion.models import loading, sources
from toybox.attributes import ATTRIBUTES
from toybox.drawing import Rng
from toybox.judge import ATTRIBUTE_NAMES, SCENE_NAMES, Judge, classify, load_judge, object_features
from toybox.labels import Label
from toybox.objects import OBJECTS
from toybox.rendering import render_image
from toybox.scenes import SCENES
from toybox.shards import stack
from toybox.sheet import contact_sheet
from toybox.subjects import (
    SUBJECTS,
    Prompt,
    Subject,
    render_photos,
    render_subject,
    sample_scenes,
    save_photos,
)
from training import config as configs
from training import presets
from training.loop import train as train_adapter

PHOTOS = 5
RENDERS = 8
"""Renders of each object and subject over which the judge's features are averaged."""
CEILING, BASE = "renders", "base"
JUDGE = Path(__file__).with_name("judge.safetensors")
ADAPTER, TRIGGER = "subject", "sks"
COLUMNS = {
    "shown": 0.80, "shown in scenes": None, "shown in looks": None, "scene": 0.85, "look": None, "seconds": 90.0
}  # fmt: skip
"""Columns of the table and their targets: a minimum share of the images, a maximum of seconds per run."""

Row = dict[str, Any]
"""A finished run: its case, training seconds, and the judge's answers for the image of each prompt."""
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
        plain = {key: value for key, value in self.settings.items() if key != "options"}
        said = {**plain, **self.settings.get("options", {})}
        return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in said.items())


@dataclass(frozen=True)
class References:
    """Names of objects and subjects, and the normalized mean of the judge's features of each, (M, C)."""

    names: Sequence[str]
    means: Tensor

    @classmethod
    def of(cls, described: Mapping[str, Tensor]) -> "References":
        """Average the features (N, C) of each name's images."""
        return cls(list(described), F.normalize(torch.stack([own.mean(0) for own in described.values()]), dim=1))

    def nearest(self, described: Tensor) -> list[str]:
        """Return the name with the nearest mean for each row of features (N, C)."""
        return [self.names[index] for index in (described @ self.means.T).argmax(1)]


@dataclass(frozen=True)
class Bench:
    """Runs cases and scores their images."""

    base: str
    device: str
    sprites: Path
    sheets: Path | None
    judge: Judge
    references: References
    timed: bool

    def measure(self, case: Case) -> Row:
        """Generate the images of one case and score them."""
        subject, seconds = SUBJECTS[case.subject], None
        photos = render_photos(self.sprites, subject.name, PHOTOS, photo_seed(subject))
        if case.method == CEILING:
            pictures = render_prompts(self.sprites, subject, case.seed)
        elif case.method == BASE:
            pictures = generate_prompts(load_base(self.base, self.device), subject, case.seed)
        else:
            pipe, seconds = self.train(case, subject, photos)
            pictures = generate_prompts(pipe, subject, case.seed, ((ADAPTER, 1.0),))
        if self.sheets:
            self.sheets.mkdir(parents=True, exist_ok=True)
            name = f"{case.subject} {case.method} {case.seed} {case.summary}".strip()
            place = self.sheets / f"{name}.png"
            contact_sheet([*photos, *pictures], columns=PHOTOS).save(place)
        return asdict(case) | {"seconds": seconds if self.timed else None} | self.judged(subject, pictures)

    def train(self, case: Case, subject: Subject, photos: list[Image.Image]) -> tuple[StableDiffusionPipeline, float]:
        """Return the pipeline with an adapter trained on the photos, and the seconds this took."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save_photos(photos, folder / "photos")
            config = configs.parse(
                {"name": ADAPTER, "photos": [folder / "photos"], "class_noun": subject.noun, "trigger": TRIGGER,
                 "method": case.method, "seed": case.seed, "device": self.device} | case.settings
            )  # fmt: skip
            start = time.perf_counter()
            pipe = load_base(self.base, self.device)
            train_adapter(config, folder, pipe=pipe)
            return pipe, round(time.perf_counter() - start, 1)

    def judged(self, subject: Subject, pictures: Sequence[Image.Image]) -> Row:
        """Return the nearest name of each image, and the scene or attribute that the judge sees in it."""
        values = stack(pictures)
        predicted = classify(self.judge, values)
        seen = [
            SCENE_NAMES[scene] if prompt.scene else ATTRIBUTE_NAMES[look]
            for prompt, scene, look in zip(subject.prompts, predicted.scenes, predicted.attributes, strict=True)
        ]
        return {"nearest": self.references.nearest(object_features(self.judge, values)), "seen": seen}


def main() -> None:
    """Run the missing cases and write the report."""
    methods = [CEILING, BASE, *registry.method_names()]
    parser = make_parser(__doc__, RESULTS / "subjects.json")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    facts, bench = set_up(given)
    cases = [Case(*case) for seed in given.seeds for case in product(given.subjects, given.methods, [seed])]
    said = report(run_missing(given.output, facts, cases, bench.measure))
    write_text(given.output.with_suffix(".md"), said)
    print(said)


def make_parser(description: str | None, output: Path) -> argparse.ArgumentParser:
    """Create the parser with the options that this benchmark and the sweep share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sprites", type=Path, required=True, help="the assets folder of the sprites' package")
    parser.add_argument("--judge", type=Path, default=JUDGE, help="checkpoint of another judge")
    parser.add_argument("--base", default=sources.TOYBOX, help="toybox, or a folder with a model of the same kind")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=output, help="results file; the report goes to .md beside it")
    parser.add_argument("--untimed", action="store_true", help="record no seconds, for a machine that is shared")
    parser.add_argument("--sheets", type=Path, help="folder for a contact sheet of each run: photos, then images")
    return parser


def set_up(given: argparse.Namespace) -> tuple[dict[str, Any], Bench]:
    """Return the facts that all results of one file must share, and the bench that measures."""
    judge = load_judge(given.judge)
    facts = {
        "base": fingerprint(given.base),
        "judge": fingerprint(given.judge),
        "device": given.device,
        "presets": {name: presets.defaults(sources.TOYBOX, name, "balanced") for name in registry.method_names()},
    }
    references = make_references(given.sprites, judge)
    return facts, Bench(given.base, given.device, given.sprites, given.sheets, judge, references, not given.untimed)


def run_missing(
    output: Path, facts: Mapping[str, object], cases: Iterable[Case], measure: Callable[[Case], Row]
) -> Results:
    """Measure the cases that the file lacks, save it after each, and return its content.

    Raises ValueError if the file was measured with another base model, judge, presets or device.
    """
    results: Results = {**facts, "sessions": [], "rows": []}
    if output.exists():
        results = json.loads(output.read_text(encoding="utf-8"))
        if other := [what for what, value in facts.items() if results.get(what) != value]:
            raise ValueError(f"{output} was measured with another {', '.join(other)}: choose another --output")
    done, session = (
        {Case.of(row) for row in results["rows"]},
        {"commit": commit(), "machine": machine_facts(), "runs": 0},
    )
    for case in (case for case in cases if case not in done):
        results["rows"].append(measure(case))
        if not session["runs"]:
            results["sessions"].append(session)
        session["runs"] += 1
        write_text(output, json.dumps(results, indent=1, ensure_ascii=False))
        summary = {**asdict(case), **shares(results["rows"][-1])}
        print(" ".join(f"{key}={value}" for key, value in summary.items()), flush=True)
    return results


def machine_summary(results: Results) -> str:
    """Describe the machines that were measured on, each with its number of runs."""
    runs: dict[str, int] = {}
    for session in results["sessions"]:
        name = describe_machine({fact: value for fact, value in session["machine"].items() if fact != "load average"})
        runs[name] = runs.get(name, 0) + session["runs"]
    return "; ".join(f"{name} ({count} runs)" for name, count in runs.items())


def load_base(base: str, device: str) -> StableDiffusionPipeline:
    """Load the embedded base model, or another that takes over its presets and guidance scale."""
    pipe = loading.load_base(base, device)
    pipe.base_name = sources.TOYBOX
    return pipe


def fingerprint(path: str | Path) -> str:
    """Return the first digits of the SHA-256 of a file, or of a base model's UNet."""
    folder = sources.ASSETS / sources.TOYBOX if path == sources.TOYBOX else Path(path)
    file = next(iter(sorted((folder / "unet").glob("*.safetensors"))), folder)
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def photo_seed(subject: Subject) -> int:
    """Seed of the scenes of a subject's photos."""
    return list(SUBJECTS).index(subject.name)


def make_references(sprites: Path, judge: Judge) -> References:
    """Average the judge's features over RENDERS images of every object and subject in random scenes, half with looks.

    A subject's renders avoid the scenes of its photos.
    """
    rng = np.random.default_rng(777)
    described = {}
    for thing in OBJECTS:
        labels = [Label(thing.name, scene, look) for scene, look in sample_surroundings(rng, list(SCENES))]
        described[thing.name] = object_features(judge, stack([render_image(sprites, label, rng) for label in labels]))
    for subject in SUBJECTS.values():
        photographed = sample_scenes(np.random.default_rng(photo_seed(subject)), PHOTOS)
        elsewhere = [scene for scene in SCENES if scene not in photographed]
        renders = [render_subject(sprites, subject, *place, rng) for place in sample_surroundings(rng, elsewhere)]
        described[subject.name] = object_features(judge, stack(renders))
    return References.of(described)


def sample_surroundings(rng: Rng, scenes: Sequence[str]) -> list[tuple[str, str]]:
    """Return RENDERS random scenes, every other one with a random look."""
    return [
        (str(rng.choice(scenes)), "" if index % 2 else str(rng.choice(list(ATTRIBUTES)))) for index in range(RENDERS)
    ]


def generate_prompts(
    pipe: StableDiffusionPipeline, subject: Subject, seed: int, mix: ActiveAdapters = ()
) -> list[Image.Image]:
    """Generate an image for each of a subject's prompts, from the same noise whatever adapter is active."""
    words = f"{TRIGGER} {subject.noun}"
    prompts = [f"a photo of {prompt.text}".replace("{subject}", words) for prompt in subject.prompts]
    requests = [Request(prompt, 1000 * (seed + 1) + number, mix) for number, prompt in enumerate(prompts)]
    return generate_batch(pipe, requests, Settings(steps=25))


def render_prompts(sprites: Path, subject: Subject, seed: int) -> list[Image.Image]:
    """Render what a subject's prompts ask for; in a random scene if a prompt names none."""
    rng = np.random.default_rng((778, seed))

    def scene_of(prompt: Prompt) -> str:
        return prompt.scene or str(rng.choice(list(SCENES)))

    return [render_subject(sprites, subject, scene_of(prompt), prompt.attribute, rng) for prompt in subject.prompts]


def shares(row: Row) -> dict[str, float | None]:
    """Shares of a run's images that show the subject, the scene and the look of the prompt, and its seconds."""
    prompts = SUBJECTS[row["subject"]].prompts
    asked = list(zip(prompts, row["seen"], strict=True))
    shown = [(prompt, name == row["subject"]) for prompt, name in zip(prompts, row["nearest"], strict=True)]
    return {
        "shown": statistics.fmean(hit for _, hit in shown),
        "shown in scenes": statistics.fmean(hit for prompt, hit in shown if prompt.scene),
        "shown in looks": statistics.fmean(hit for prompt, hit in shown if prompt.attribute),
        "scene": statistics.fmean(seen == prompt.scene for prompt, seen in asked if prompt.scene),
        "look": statistics.fmean(seen == prompt.attribute for prompt, seen in asked if prompt.attribute),
        "seconds": row["seconds"],
    }


def report(results: Results) -> str:
    """Compare the methods with the targets, overall and by subject, as Markdown."""
    rows: list[Row] = results["rows"]
    methods = sorted({row["method"] for row in rows}, key=[*registry.method_names(), BASE, CEILING].index)
    summary = [(method, *summarised([row for row in rows if row["method"] == method])) for method in methods]
    titles = (
        "method", "runs", "the subject, ≥ 0.80", "of it in scenes", "in looks",
        "the scene, ≥ 0.85", "the look", "seconds a run, ≤ 90",
    )  # fmt: skip
    names = dict.fromkeys(row["subject"] for row in rows)
    by_subject = [
        (name, *(subject_summary([r for r in rows if (r["subject"], r["method"]) == (name, m)]) for m in methods))
        for name in names
    ]
    return (
        "\n\n".join(
            [
                f"Balanced, {PHOTOS} photos, 25 prompts a run, {results['device']}. {machine_summary(results)}. "
                "Shares of the pictures: mean (least to most) over the seeds, each over all its runs.",
                markdown_table(titles, summary),
                "By subject: shares of the pictures that show it / the scene asked for, over all seeds.",
                markdown_table(("subject", *methods), by_subject),
            ]
        )
        + "\n"
    )


def summarised(rows: Sequence[Row]) -> list[object]:
    """Cells of one method: number of runs, then each figure over the seeds with its verdict."""
    trained = rows[0]["method"] not in (CEILING, BASE)
    cells: list[object] = [len(rows)]
    for column, limit in COLUMNS.items():
        values = over_seeds(rows, column)
        cells.append(judged_spread(values, column, limit if trained else None) if values else "")
    return cells


def over_seeds(rows: Sequence[Row], column: str) -> list[float]:
    """Mean of a figure over the runs of each seed that measured it."""
    found = [(row["seed"], shares(row)[column]) for row in rows]
    seeds = sorted({seed for seed, value in found if value is not None})
    return [statistics.fmean(value for own, value in found if own == seed and value is not None) for seed in seeds]


def judged_spread(values: Sequence[float], column: str, limit: float | None) -> str:
    """Mean (minimum to maximum), with the verdict if there is a limit."""
    form = ".0f" if column == "seconds" else ".2f"
    said = f"{statistics.fmean(values):{form}} ({min(values):{form}} to {max(values):{form}})"
    if limit is None:
        return said
    target = Target(column, statistics.fmean(values), limit, at_least=column != "seconds", rounds=values)
    return f"{said} {target.mark}"


def subject_summary(rows: Sequence[Row]) -> str:
    """Shares of images with the right subject and the right scene: "0.92 / 0.88"."""
    if not rows:
        return ""
    return " / ".join(f"{statistics.fmean(shares(row)[what] for row in rows):.2f}" for what in ("shown", "scene"))


if __name__ == "__main__":
    main()
