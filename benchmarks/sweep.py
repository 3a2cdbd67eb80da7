"""Which settings suit each method on toybox: a small sweep over held-out subjects.

    python benchmarks/sweep.py --sprites DIR [--output benchmarks/results/sweep]

Every run is judged by its denoising loss (same noise, same timesteps) on renders the training never saw:
- subject: the subject in other scenes, captioned "a photo of a sks animal in the snow", as a part of the base's loss on
  the same pictures (below 1 is learned);
- class: other things of the world under their own captions, as a part of the base's loss (above 1 is forgotten).
First the learning rate is swept at rank 8 with the Quick preset's steps. The rate kept is the one that learns the
subject best while it forgets the rest by no more than 15 % (means over subjects and seeds). At that rate other ranks,
HRA's λ and the Balanced preset's steps are then tried, on the first subject. A denoising loss is a proxy for what a
person sees: look at the pictures too.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from hra_diffusion import families, library, pipeline, registry
from hra_diffusion.files import write_text
from training import config as configs
from training import objective
from training.cache import Examples, encode
from training.loop import train
from training.toybox.captions import caption_of
from training.toybox.scenes import SCENES
from training.toybox.subjects import save_photos, take_photos
from training.toybox.world import THINGS, Label, find_thing, photograph

SUBJECTS = ("penguin", "hedgehog")
RATES = {"low_rank": (1e-3, 2e-3, 5e-3), "reflections": (2.5e-3, 5e-3, 1e-2)}
FORGOTTEN = 1.15
TIMESTEPS = torch.arange(100, 1000, 200)


@dataclass(frozen=True)
class Trial:
    """One way to train a method."""

    method: str
    rate: float
    preset: str = "quick"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What is special about it, in words."""
        said = [f"{key} {value:g}" for key, value in self.options.items()]
        return ", ".join([*said, *([self.preset] if self.preset != "quick" else [])])


@dataclass(frozen=True)
class Bench:
    """What every trial is measured on: the base, a folder, and unseen pictures of each subject ("" is other things).

    Beside each subject's pictures stands the base's own loss on them.
    """

    pipe: StableDiffusionPipeline
    sprites: Path
    folder: Path
    unseen: dict[str, tuple[Examples, float]]

    def judge(self, subject: str) -> float:
        """The loss on a subject's pictures, with the adapters that are active, as a part of the base's."""
        examples, base = self.unseen[subject]
        return round(denoising_loss(self.pipe, examples) / base, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sprites", type=Path, required=True, help="the assets folder of the sprites' package")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/sweep"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=registry.names())
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS)
    arguments = parser.parse_args()
    pipe = pipeline.load_base()
    with tempfile.TemporaryDirectory() as folder:
        unseen = {name: encode_subject(pipe, arguments.sprites, name) for name in arguments.subjects}
        unseen[""] = encode_things(pipe, arguments.sprites)
        judged = {name: (examples, denoising_loss(pipe, examples)) for name, examples in unseen.items()}
        bench = Bench(pipe, arguments.sprites, Path(folder), judged)
        rows: list[dict] = []
        for method in arguments.methods:
            swept = run(bench, [Trial(method, rate) for rate in rates(method)], arguments.subjects, arguments.seeds)
            trials = variations(method, best_rate(swept))
            rows += swept + run(bench, trials, arguments.subjects[:1], arguments.seeds)
            write_text(arguments.output.with_suffix(".json"), json.dumps(rows, indent=1))
            write_text(arguments.output.with_suffix(".md"), table(rows))
    print(table(rows))


def rates(method: str) -> tuple[float, ...]:
    """The rates to try: reflections turn by an angle, low-rank updates add; they live on different scales."""
    return RATES["low_rank" if "alpha" in registry.get(method).config.model_fields else "reflections"]


def variations(method: str, rate: float) -> list[Trial]:
    """Other ranks, other presets and HRA's other forms, at one rate."""
    trials = [Trial(method, rate, options={"rank": rank}) for rank in (4, 16)]
    if method == "hra":
        trials += [Trial(method, rate, options={"orthogonality": value}) for value in (1e-3, float("inf"))]
    return [*trials, Trial(method, rate, "balanced")]


def run(bench: Bench, trials: list[Trial], subjects: list[str], seeds: list[int]) -> list[dict]:
    """A row for every trial, subject and seed."""
    rows = []
    for trial in trials:
        for subject in subjects:
            for seed in seeds:
                rows.append(measure(bench, trial, subject, seed))
                print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return rows


def measure(bench: Bench, trial: Trial, subject: str, seed: int) -> dict:
    """Train once and judge."""
    photos, start = bench.folder / f"{subject} photos", time.perf_counter()
    if not photos.exists():
        save_photos(take_photos(bench.sprites, subject, 5, seed=0), photos)
    name = f"run {len(list(bench.folder.glob('run *')))}"
    config = configs.parse(
        {"name": name, "photos": [photos], "class_noun": find_thing(subject).noun, "method": trial.method, "seed": seed,
         "learning_rate": trial.rate, "preset": trial.preset, "options": trial.options, "sample_prompts": [],
         "device": "cpu"}
    )  # fmt: skip
    library.put_on(bench.pipe, train(config, bench.folder))
    seconds = time.perf_counter() - start
    pipeline.activate(bench.pipe, {name: 1.0})
    losses = {"subject_loss": bench.judge(subject), "class_loss": bench.judge("")}
    pipeline.unload(bench.pipe, name)
    return {
        "method": trial.method,
        "rate": trial.rate,
        "label": trial.label,
        "subject": subject,
        "seed": seed,
        **losses,
        "seconds": round(seconds, 1),
    }


def encode_subject(pipe: StableDiffusionPipeline, sprites: Path, subject: str) -> Examples:
    """One render in every scene, other than the training photos, under prompts with the trigger."""
    thing = find_thing(subject)
    images = [photograph(sprites, Label(subject, phrase), seed=1000 + i) for i, phrase in enumerate(SCENES)]
    captions = [f"a photo of a sks {thing.noun} {phrase}" for phrase in SCENES]
    return encode(pipe, images, captions, flip=False, embed=False)


def encode_things(pipe: StableDiffusionPipeline, sprites: Path) -> Examples:
    """Every thing of the world once, under its own name."""
    phrases = list(SCENES)
    placed = [Label(thing.name, phrases[i % len(phrases)]) for i, thing in enumerate(THINGS)]
    images = [photograph(sprites, label, seed=2000 + i) for i, label in enumerate(placed)]
    return encode(pipe, images, [caption_of(label) for label in placed], flip=False, embed=False)


@torch.no_grad()
def denoising_loss(pipe: StableDiffusionPipeline, examples: Examples) -> float:
    """Mean weighted squared error over five timesteps, with noise fixed by picture and timestep."""
    scheduler, latents, total = pipe.scheduler, examples.mean[:, 0], 0.0
    alphas, kind = scheduler.alphas_cumprod, scheduler.config.prediction_type
    text = families.of(pipe).embed(families.text_encoders(pipe), examples.text["ids"])["hidden"]
    for timestep in TIMESTEPS:
        noise = torch.randn(latents.shape, generator=objective.stream(0, "sweep", int(timestep)))
        timesteps = timestep.expand(len(latents))
        predicted = pipe.unet(objective.noisy(latents, noise, timesteps, alphas), timesteps, text).sample
        weights = objective.min_snr_weights(timesteps, alphas, 5.0, kind)
        wanted = objective.target(latents, noise, timesteps, alphas, kind)
        total += float(objective.denoising_loss(predicted, wanted, weights, 0, 0.0))
    return total / len(TIMESTEPS)


def table(rows: list[dict]) -> str:
    """The sweep as Markdown: mean and range over subjects and seeds, the rate kept marked."""
    subjects = ", ".join(sorted({row["subject"] for row in rows}))
    lines = [
        f"Quick, rank 8 where nothing else is said; subjects: {subjects}; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}. "
        "Losses are parts of the base's; mean (least to most) over subjects and seeds.",
        "",
        "| method | rate | varied | subject loss | class loss | seconds |  |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, rate, label in dict.fromkeys((row["method"], row["rate"], row["label"]) for row in rows):
        own = [row for row in rows if row["method"] == method]
        same = [row for row in own if (row["rate"], row["label"]) == (rate, label)]
        cells = [spread([row[key] for row in same]) for key in ("subject_loss", "class_loss", "seconds")]
        kept = not label and rate == best_rate([row for row in own if not row["label"]])
        lines.append(f"| {method} | {rate:g} | {label} | {' | '.join(cells)} | {'kept' if kept else ''} |")
    return "\n".join(lines) + "\n"


def best_rate(rows: list[dict]) -> float:
    """The rate with the lowest mean subject loss among those that forget little; the one that forgets least if none."""

    def mean(rate: float, key: str) -> float:
        return statistics.mean(row[key] for row in rows if row["rate"] == rate)

    tried = {row["rate"] for row in rows}
    gentle = {rate for rate in tried if mean(rate, "class_loss") <= FORGOTTEN}
    if not gentle:
        return min(tried, key=lambda rate: mean(rate, "class_loss"))
    return min(gentle, key=lambda rate: mean(rate, "subject_loss"))


def spread(values: list[float]) -> str:
    """Mean (least to most)."""
    return f"{statistics.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    main()
