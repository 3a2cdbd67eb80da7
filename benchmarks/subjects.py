"""How well toybox is taught subjects that it has never seen, by every method, as a judge of its own sees it.

    python -m benchmarks.subjects --sprites DIR [--sheets DIR]

Each of ten subjects is taught from five photos by the Balanced preset, as the product does it, and asked for by its 25
prompts of the DreamBooth benchmark. The judge, with weights and renders of its own (judge.safetensors beside this file;
python -m toybox judge made it), says of every picture
- whether it shows the subject: of the mean features of every known thing and of all ten subjects, 8 fresh renders each,
  those of this subject are the nearest;
- whether the scene, or else the look, that the prompt names is right.
The same is asked of renders of the subjects ("renders": what the judge can tell at best) and of the untrained base
("base": what chance gives). Every run is kept as it ends: stopped and started again, it goes on.
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

from benchmarks.common import RESULTS, Bar, commit
from hra_diffusion.adapters import registry
from hra_diffusion.adapters.layer import ActiveAdapters
from hra_diffusion.files import write_text
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate_batch
from hra_diffusion.models import loading, sources
from toybox.judge import LOOK_NAMES, SCENE_NAMES, Judge, examine, features, load_judge
from toybox.looks import LOOKS
from toybox.scenes import SCENES, Rng
from toybox.shards import stack
from toybox.sheet import contact_sheet
from toybox.subjects import (
    SUBJECTS,
    Prompt,
    Subject,
    photo_scenes,
    photograph_subject,
    save_photos,
    take_photos,
)
from toybox.world import THINGS, Label, photograph
from training import config as configs
from training import presets
from training.loop import train
from training.memory.measure import in_words, machine, markdown

PHOTOS = 5
RENDERS = 8
"""Renders of each thing and subject that the judge's features are averaged over."""
CEILING, BASE = "renders", "base"
JUDGE = Path(__file__).with_name("judge.safetensors")
ADAPTER, TRIGGER = "subject", "sks"
COLUMNS = {
    "shown": 0.80, "shown in scenes": None, "shown in looks": None, "scene": 0.85, "look": None, "seconds": 90.0
}  # fmt: skip
"""What is told of a method, and the bars: at least so large a share, at most so many seconds a run."""

Row = dict[str, Any]
"""A finished run: its case, the seconds it took to train, and what the judge saw in the picture of each prompt."""
Results = dict[str, Any]
"""What a file of results holds: the facts its runs share, the sessions they were made in, and the rows."""


@dataclass(frozen=True)
class Case:
    """One run: a subject (by name), a method, a seed; and what differs from the Balanced preset, as JSON."""

    subject: str
    method: str
    seed: int
    changes: str = "{}"

    @classmethod
    def of(cls, row: Row) -> "Case":
        """The case of a finished run."""
        return cls(row["subject"], row["method"], row["seed"], row["changes"])

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from the preset, by the configuration's names."""
        return json.loads(self.changes)

    @property
    def in_words(self) -> str:
        """What differs, as a person would say it: "learning rate 0.002, rank 4"."""
        plain = {key: value for key, value in self.settings.items() if key != "options"}
        said = {**plain, **self.settings.get("options", {})}
        return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in said.items())


@dataclass(frozen=True)
class References:
    """What things look like to the judge: a name and the mean features (of length 1) of each."""

    names: Sequence[str]
    means: Tensor

    @classmethod
    def of(cls, described: Mapping[str, Tensor]) -> "References":
        """From the features (N, C) of some pictures of each."""
        return cls(list(described), F.normalize(torch.stack([own.mean(0) for own in described.values()]), dim=1))

    def nearest(self, described: Tensor) -> list[str]:
        """The name of what each of the features (N, C) is nearest to."""
        return [self.names[index] for index in (described @ self.means.T).argmax(1)]


@dataclass(frozen=True)
class Bench:
    """What every run is measured with."""

    base: str
    device: str
    sprites: Path
    sheets: Path | None
    judge: Judge
    references: References
    timed: bool

    def measure(self, case: Case) -> Row:
        """Make the pictures of one case and ask the judge."""
        subject, seconds = SUBJECTS[case.subject], None
        photos = take_photos(self.sprites, subject.name, PHOTOS, photo_seed(subject))
        if case.method == CEILING:
            pictures = render_prompts(self.sprites, subject, case.seed)
        elif case.method == BASE:
            pictures = draw_prompts(load_base(self.base, self.device), subject, case.seed)
        else:
            pipe, seconds = self.teach(case, subject, photos)
            pictures = draw_prompts(pipe, subject, case.seed, ((ADAPTER, 1.0),))
        if self.sheets:
            self.sheets.mkdir(parents=True, exist_ok=True)
            name = f"{case.subject} {case.method} {case.seed} {case.in_words}".strip()
            place = self.sheets / f"{name}.png"
            contact_sheet([*photos, *pictures], columns=PHOTOS).save(place)
        return asdict(case) | {"seconds": seconds if self.timed else None} | self.judged(subject, pictures)

    def teach(self, case: Case, subject: Subject, photos: list[Image.Image]) -> tuple[StableDiffusionPipeline, float]:
        """The base with an adapter that has learned the subject, and the seconds from the photos to it."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save_photos(photos, folder / "photos")
            config = configs.parse(
                {"name": ADAPTER, "photos": [folder / "photos"], "class_noun": subject.noun, "trigger": TRIGGER,
                 "method": case.method, "seed": case.seed, "device": self.device} | case.settings
            )  # fmt: skip
            start = time.perf_counter()
            pipe = load_base(self.base, self.device)
            train(config, folder, pipe=pipe)
            return pipe, round(time.perf_counter() - start, 1)

    def judged(self, subject: Subject, pictures: Sequence[Image.Image]) -> Row:
        """What each picture is nearest to, and which scene or look the judge sees where the prompt names one."""
        values = stack(pictures)
        verdict = examine(self.judge, values)
        seen = [
            SCENE_NAMES[scene] if prompt.scene else LOOK_NAMES[look]
            for prompt, scene, look in zip(subject.prompts, verdict.scenes, verdict.looks, strict=True)
        ]
        return {"nearest": self.references.nearest(features(self.judge, values)), "seen": seen}


def main() -> None:
    """Run what is not yet there, and tell."""
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
    """What every benchmark of teaching subjects is told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sprites", type=Path, required=True, help="the assets folder of the sprites' package")
    parser.add_argument("--judge", type=Path, default=JUDGE, help="another judge's checkpoint")
    parser.add_argument("--base", default=sources.TOYBOX, help="toybox, or a folder with another in its place")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=output, help="grows run by run; .md beside it")
    parser.add_argument("--untimed", action="store_true", help="keep no seconds: runs share the machine with others")
    parser.add_argument("--sheets", type=Path, help="folder for a contact sheet a run: photos above, pictures below")
    return parser


def set_up(given: argparse.Namespace) -> tuple[dict[str, Any], Bench]:
    """What results must not be mixed across, and what to measure with."""
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
    """Measure the cases that the file does not hold yet, writing it after each; all that it then holds.

    Raises ValueError for a file that was measured with another base, judge or presets, or on another device.
    """
    results: Results = {**facts, "sessions": [], "rows": []}
    if output.exists():
        results = json.loads(output.read_text(encoding="utf-8"))
        if other := [what for what, value in facts.items() if results.get(what) != value]:
            raise ValueError(f"{output} was measured with another {', '.join(other)}: choose another --output")
    done, session = {Case.of(row) for row in results["rows"]}, {"commit": commit(), "machine": machine(), "runs": 0}
    for case in (case for case in cases if case not in done):
        results["rows"].append(measure(case))
        if not session["runs"]:
            results["sessions"].append(session)
        session["runs"] += 1
        write_text(output, json.dumps(results, indent=1, ensure_ascii=False))
        told = {**asdict(case), **shares(results["rows"][-1])}
        print(" ".join(f"{key}={value}" for key, value in told.items()), flush=True)
    return results


def machines(results: Results) -> str:
    """What was measured on, in words: each machine once, with how many runs it made."""
    runs: dict[str, int] = {}
    for session in results["sessions"]:
        name = in_words({fact: value for fact, value in session["machine"].items() if fact != "load average"})
        runs[name] = runs.get(name, 0) + session["runs"]
    return "; ".join(f"{name} ({count} runs)" for name, count in runs.items())


def load_base(base: str, device: str) -> StableDiffusionPipeline:
    """The embedded base, or another in its place, which then takes its presets and its guidance."""
    pipe = loading.load_base(base, device)
    pipe.base_name = sources.TOYBOX
    return pipe


def fingerprint(path: str | Path) -> str:
    """The first digits of the SHA-256 of a file, or of a base's UNet."""
    folder = sources.ASSETS / sources.TOYBOX if path == sources.TOYBOX else Path(path)
    file = next(iter(sorted((folder / "unet").glob("*.safetensors"))), folder)
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def photo_seed(subject: Subject) -> int:
    """What decides the scenes of a subject's photos: each has its own."""
    return list(SUBJECTS).index(subject.name)


def make_references(sprites: Path, judge: Judge) -> References:
    """Of every known thing and every subject: RENDERS pictures in scenes of chance, half of them in looks of chance.

    A subject's are in none of the scenes of its photos.
    """
    rng = np.random.default_rng(777)
    described = {}
    for thing in THINGS:
        labels = [Label(thing.name, scene, look) for scene, look in surroundings(rng, list(SCENES))]
        described[thing.name] = features(judge, stack([photograph(sprites, label, rng) for label in labels]))
    for subject in SUBJECTS.values():
        photographed = photo_scenes(np.random.default_rng(photo_seed(subject)), PHOTOS)
        elsewhere = [scene for scene in SCENES if scene not in photographed]
        renders = [photograph_subject(sprites, subject, *place, rng) for place in surroundings(rng, elsewhere)]
        described[subject.name] = features(judge, stack(renders))
    return References.of(described)


def surroundings(rng: Rng, scenes: Sequence[str]) -> list[tuple[str, str]]:
    """RENDERS scenes of chance, every other one with a look of chance."""
    return [(str(rng.choice(scenes)), "" if index % 2 else str(rng.choice(list(LOOKS)))) for index in range(RENDERS)]


def draw_prompts(
    pipe: StableDiffusionPipeline, subject: Subject, seed: int, mix: ActiveAdapters = ()
) -> list[Image.Image]:
    """The pipeline's picture for each of a subject's prompts, from the same noise whatever is on it."""
    words = f"{TRIGGER} {subject.noun}"
    prompts = [f"a photo of {prompt.text}".replace("{subject}", words) for prompt in subject.prompts]
    requests = [Request(prompt, 1000 * (seed + 1) + number, mix) for number, prompt in enumerate(prompts)]
    return generate_batch(pipe, requests, Settings(steps=25))


def render_prompts(sprites: Path, subject: Subject, seed: int) -> list[Image.Image]:
    """What a subject's prompts ask for, rendered; where they name no scene, in one of chance."""
    rng = np.random.default_rng((778, seed))

    def scene_of(prompt: Prompt) -> str:
        return prompt.scene or str(rng.choice(list(SCENES)))

    return [photograph_subject(sprites, subject, scene_of(prompt), prompt.look, rng) for prompt in subject.prompts]


def shares(row: Row) -> dict[str, float | None]:
    """The shares of a run's pictures that show the subject, the scene and the look asked for, and its seconds."""
    prompts = SUBJECTS[row["subject"]].prompts
    asked = list(zip(prompts, row["seen"], strict=True))
    shown = [(prompt, name == row["subject"]) for prompt, name in zip(prompts, row["nearest"], strict=True)]
    return {
        "shown": statistics.fmean(hit for _, hit in shown),
        "shown in scenes": statistics.fmean(hit for prompt, hit in shown if prompt.scene),
        "shown in looks": statistics.fmean(hit for prompt, hit in shown if prompt.look),
        "scene": statistics.fmean(seen == prompt.scene for prompt, seen in asked if prompt.scene),
        "look": statistics.fmean(seen == prompt.look for prompt, seen in asked if prompt.look),
        "seconds": row["seconds"],
    }


def report(results: Results) -> str:
    """The methods against the bars, and which subjects they learn, as Markdown."""
    rows: list[Row] = results["rows"]
    methods = sorted({row["method"] for row in rows}, key=[*registry.method_names(), BASE, CEILING].index)
    summary = [(method, *summarised([row for row in rows if row["method"] == method])) for method in methods]
    titles = (
        "method", "runs", "the subject, ≥ 0.80", "of it in scenes", "in looks",
        "the scene, ≥ 0.85", "the look", "seconds a run, ≤ 90",
    )  # fmt: skip
    names = dict.fromkeys(row["subject"] for row in rows)
    by_subject = [
        (name, *(learned([row for row in rows if (row["subject"], row["method"]) == (name, m)]) for m in methods))
        for name in names
    ]
    return (
        "\n\n".join(
            [
                f"Balanced, {PHOTOS} photos, 25 prompts a run, {results['device']}. {machines(results)}. "
                "Shares of the pictures: mean (least to most) over the seeds, each over all its runs.",
                markdown(titles, summary),
                "By subject: shares of the pictures that show it / the scene asked for, over all seeds.",
                markdown(("subject", *methods), by_subject),
            ]
        )
        + "\n"
    )


def summarised(rows: Sequence[Row]) -> list[object]:
    """The cells of one method: how many runs, then each figure over the seeds with whether its bar is met."""
    trained = rows[0]["method"] not in (CEILING, BASE)
    cells: list[object] = [len(rows)]
    for column, limit in COLUMNS.items():
        values = over_seeds(rows, column)
        cells.append(judged_spread(values, column, limit if trained else None) if values else "")
    return cells


def over_seeds(rows: Sequence[Row], column: str) -> list[float]:
    """A figure for each seed: the mean over its runs; none where nothing was measured."""
    found = [(row["seed"], shares(row)[column]) for row in rows]
    seeds = sorted({seed for seed, value in found if value is not None})
    return [statistics.fmean(value for own, value in found if own == seed and value is not None) for seed in seeds]


def judged_spread(values: Sequence[float], column: str, limit: float | None) -> str:
    """Mean (least to most), and whether the mean keeps to the limit, if there is one."""
    form = ".0f" if column == "seconds" else ".2f"
    said = f"{statistics.fmean(values):{form}} ({min(values):{form}} to {max(values):{form}})"
    if limit is None:
        return said
    bar = Bar(column, statistics.fmean(values), limit, at_least=column != "seconds", rounds=values)
    return f"{said} {bar.mark}"


def learned(rows: Sequence[Row]) -> str:
    """How often one subject and its scenes are right: "0.92 / 0.88"."""
    if not rows:
        return ""
    return " / ".join(f"{statistics.fmean(shares(row)[what] for row in rows):.2f}" for what in ("shown", "scene"))


if __name__ == "__main__":
    main()
