"""Whether two subjects in one image keep apart: composed adapters against geodesic fusion, scored by the judge.

    python -m benchmarks.fusion --sprites DIR [--minutes 60] [--seeds 0 1 2]

Ten subjects are trained apart, each from five photos with the Balanced preset; their adapters stay in --adapters and
are used again. Each of nine pairs is generated with both adapters of a method, as "a photo of a sks toy next to a qwe
animal", from the same noise for every method: composed, which for LoRA is the sum, and for orthogonal methods fused too
(see ``hra_diffusion.adapters.fusion``). The image is cut into a left and a right half, and the judge names the nearest
of all known objects and subjects in each (see ``benchmarks.subjects``). A subject is found if the judge names it in its
own half; the one named first may stand on either side, whichever finds more. "One twice" counts images with one subject
of the pair in both halves. Renders of the pairs give the judge's ceiling, the base model the chance level. Each case is
saved when it is done, so that an interrupted benchmark continues; with --minutes no case is begun after that time.
"""

import json
import time
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from app.benchmarking.machine import markdown_table
from benchmarks.options import RESULTS
from benchmarks.report import commit_hash
from benchmarks.subject_results import BASE, CEILING, Case
from benchmarks.subject_runs import ADAPTER, Runner, load_base, make_parser, set_up
from hra_diffusion import pipeline
from hra_diffusion.adapters import registry
from hra_diffusion.adapters.state import FUSIONS, Fusion
from hra_diffusion.comparison.intervals import bootstrap_interval, sign_flip_test
from hra_diffusion.files import write_text
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate_batch
from toybox.benchmark import PHOTOS, photo_seed
from toybox.captions import phrase
from toybox.rendering import compose
from toybox.scenes import find_scene
from toybox.sheet import contact_sheet
from toybox.subjects import SUBJECTS, render_photos, sample_scenes

PAIRS = (
    ("robot", "monkey"), ("octopus", "hedgehog"), ("pineapple", "t rex"), ("penguin", "yellow parrot"),
    ("fire engine", "pig bear"), ("octopus", "yellow parrot"), ("pineapple", "hedgehog"), ("robot", "pig bear"),
    ("penguin", "monkey"),
)  # fmt: skip
"""The subjects of each image; the last two pairs share a class noun. Each subject has one place in all its pairs."""
TRIGGERS = ("sks", "qwe")
"""The triggers of the subject named first and of the other."""
ZOOM = 1.5
"""Enlargement of a half before it is judged, because two objects are drawn at 0.66 of the size of one."""
COLUMNS = ("subjects found", "both found", "one twice")
Column = dict[str, dict[int, float]]
"""A figure by pair and seed."""
MEANS = "Means with 95 % bootstrap intervals over pairs, then seeds."
DIFFERENCES = """\
Paired differences with p-values of the sign-flip test over pairs, not corrected for their number. Pairs that share a
subject are not independent: intervals and p-values are too small."""


class Mix(NamedTuple):
    """A way to put a pair into an image: a method and how its adapters act together, or CEILING or BASE."""

    pair: tuple[str, str]
    method: str
    fusion: Fusion
    seed: int

    @property
    def key(self) -> str:
        """The mix in the results file."""
        return " / ".join((" + ".join(self.pair), self.method, self.fusion, str(self.seed)))


def mixes(seeds: Sequence[int], pairs: Sequence[tuple[str, str]], methods: Sequence[str]) -> list[Mix]:
    """Return what is measured, seed by seed; methods that are no rotations are composed only."""
    ways: list[tuple[str, Fusion]] = [(CEILING, "compose"), (BASE, "compose")]
    for method in methods:
        orthogonal = registry.get_method(method).parse({}).orthogonal
        ways += [(method, fusion) for fusion in FUSIONS if orthogonal or fusion == "compose"]
    return [Mix(pair, *way, seed) for seed, pair, way in product(seeds, pairs, ways)]


def halves_of(images: Sequence[Image.Image], side: int) -> list[Image.Image]:
    """Return the left (0) or the right half of each image, enlarged."""
    width, height = images[0].width // 2, images[0].height
    size = round(ZOOM * width), round(ZOOM * height)
    halves = [image.crop((side * width, 0, (side + 1) * width, height)) for image in images]
    return [half.resize(size, Image.Resampling.BICUBIC) for half in halves]


class Fuser:
    """Trains subjects, generates pairs and lets the judge look at their halves."""

    def __init__(self, runner: Runner, adapters: Path, steps: int | None, images: int, strength: float):
        self.runner, self.adapters, self.images, self.strength = runner, adapters, images, strength
        self.changes = {"steps": steps} if steps else {}

    def measure(self, mix: Mix) -> dict[str, list[tuple[str, str]]]:
        """Return the names that the judge gives to the left and the right half of each image."""
        images = self.render(mix) if mix.method == CEILING else self.generate(mix)
        if self.runner.sheets:
            self.runner.sheets.mkdir(parents=True, exist_ok=True)
            contact_sheet(images, columns=4).save(self.runner.sheets / f"{mix.key.replace(' / ', ', ')}.png")
        judge = self.runner.judge
        sides = [[seen.object for seen in judge.verdicts(halves_of(images, side))] for side in (0, 1)]
        return {"halves": list(zip(*sides, strict=True))}

    def generate(self, mix: Mix) -> list[Image.Image]:
        """Generate a pair from noise that depends on the seed alone."""
        pipe, active = load_base(self.runner.base, self.runner.device), []
        for name, trigger in zip(mix.pair, TRIGGERS, strict=True) if mix.method != BASE else ():
            adapter = pipeline.load(pipe, self.adapter(name, trigger, mix.method, mix.seed), name.replace(" ", "-"))
            active.append((adapter.name, self.strength))
        first, second = (f"{trigger} {SUBJECTS[name].noun}" for name, trigger in zip(mix.pair, TRIGGERS, strict=True))
        prompt = f"a photo of {phrase(first, second_object=second)}"
        seeds = range(1000 * (mix.seed + 1), 1000 * (mix.seed + 1) + self.images)
        requests = [Request(prompt, seed, tuple(active), fusion=mix.fusion) for seed in seeds]
        return generate_batch(pipe, requests, Settings(steps=25))

    def adapter(self, name: str, trigger: str, method: str, seed: int) -> Path:
        """Return the adapter of a subject, trained if it is not there."""
        changes = json.dumps({"trigger": trigger} | self.changes, sort_keys=True)
        steps = f"-{self.changes['steps']}-steps" if self.changes else ""
        file = self.adapters / f"{name.replace(' ', '-')}-{trigger}-{method}-{seed}{steps}.safetensors"
        if not file.exists():
            photos = render_photos(self.runner.sprites, name, PHOTOS, photo_seed(SUBJECTS[name]))
            pipe, seconds = self.runner.train(Case(name, method, seed, changes), SUBJECTS[name], photos)
            pipeline.save(pipe, file, ADAPTER)
            print(f"trained {file.name} in {seconds} s", flush=True)
        return file

    def render(self, mix: Mix) -> list[Image.Image]:
        """Render a pair in random scenes."""
        rng = np.random.default_rng((779, mix.seed))
        sprites = [SUBJECTS[name].make_sprite(self.runner.sprites) for name in mix.pair]
        return [compose(sprites, find_scene(scene), rng) for scene in sample_scenes(rng, self.images)]


def figures(pair: Sequence[str], halves: Sequence[Sequence[str]]) -> tuple[float, float, float]:
    """Return the shares of COLUMNS over the images: of the subjects, of the images, of the images."""
    found = [
        max(sum(name == own for name, own in zip(half, order, strict=True)) for order in (pair, pair[::-1]))
        for half in halves
    ]
    twice = [half[0] == half[1] and half[0] in pair for half in halves]
    return fmean(count / 2 for count in found), fmean(count == 2 for count in found), fmean(twice)


def report(rows: Mapping[str, Any]) -> str:
    """Return a table of the ways, and one of the paired differences between those with adapters."""
    ways: dict[tuple[str, str], list[Column]] = {}
    for row in rows.values():
        columns = ways.setdefault((row["method"], row["fusion"]), [{} for _ in COLUMNS])
        for column, value in zip(columns, figures(row["pair"], row["halves"]), strict=True):
            column.setdefault(" + ".join(row["pair"]), {})[row["seed"]] = value
    means = [(*way, sum(map(len, own[0].values())), *map(_mean, own)) for way, own in ways.items()]
    differences = [
        (f"{' '.join(second)} − {' '.join(first)}", *map(_difference, ways[second], ways[first]))
        for first, second in combinations([way for way in ways if way[0] not in (CEILING, BASE)], 2)
    ]
    tables = [markdown_table(("method", "fusion", "runs", *COLUMNS), means)]
    tables += [DIFFERENCES, markdown_table(("difference", *COLUMNS), differences)] if differences else []
    return "\n\n".join([MEANS, *tables]) + "\n"


def _mean(column: Column) -> str:
    return str(bootstrap_interval({pair: list(seeds.values()) for pair, seeds in column.items()}))


def _difference(column: Column, other: Column) -> str:
    """Return the mean of ``column − other`` over the pairs and seeds that both have."""
    gains = {
        pair: [value - other[pair][seed] for seed, value in seeds.items() if seed in other.get(pair, {})]
        for pair, seeds in column.items()
    }
    gains = {pair: own for pair, own in gains.items() if own}
    return f"{bootstrap_interval(gains)}, p {sign_flip_test(gains):.2g}" if gains else ""


def main() -> None:
    """Measure what is missing and write the table."""
    parser = make_parser(__doc__, RESULTS / "fusion.json")
    parser.add_argument("--adapters", type=Path, default=Path("outputs/fusion"), help="folder of the trained adapters")
    parser.add_argument("--pairs", type=int, nargs="+", default=range(len(PAIRS)), metavar="N", help="numbers, from 0")
    parser.add_argument(
        "--methods", nargs="+", choices=registry.method_names(), default=["lora", "hra"], metavar="NAME"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=8, help="per pair and seed (default 8)")
    parser.add_argument("--strength", type=float, default=1.0, help="of both adapters (default 1)")
    parser.add_argument("--steps", type=int, help="training steps, for a quick trial")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no case after so many minutes")
    args = parser.parse_args()
    end, (facts, runner) = time.monotonic() + 60 * args.minutes, set_up(args)
    facts |= {"images": args.images, "strength": args.strength, "steps": args.steps}
    results: dict[str, Any] = {**facts, "commit": commit_hash(), "rows": {}}
    if args.output.exists():
        results = json.loads(args.output.read_text(encoding="utf-8"))
        if any(results[key] != value for key, value in facts.items()):
            raise SystemExit(f"{args.output} was measured with other settings: choose another --output")
    fuser = Fuser(runner, args.adapters, args.steps, args.images, args.strength)
    for mix in mixes(args.seeds, [PAIRS[number] for number in args.pairs], args.methods):
        if mix.key in results["rows"] or time.monotonic() > end:
            continue
        results["rows"][mix.key] = row = mix._asdict() | fuser.measure(mix)
        write_text(args.output, json.dumps(results, indent=1))
        print(mix.key, *(f"{value:.2f}" for value in figures(mix.pair, row["halves"])), flush=True)
    text = report(results["rows"])
    write_text(args.output.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
