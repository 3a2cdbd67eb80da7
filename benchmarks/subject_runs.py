"""Runs on subjects: train an adapter on photos, generate the benchmark's prompts and let the judge score the images."""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import StableDiffusionPipeline
from PIL import Image

from benchmarks.subject_results import BASE, CEILING, Case, Row
from hra_diffusion.adapters.methods import COMPARED
from hra_diffusion.adapters.state import ActiveAdapters
from hra_diffusion.evaluation.judge import ToyboxJudge
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate_batch
from hra_diffusion.models import loading, sources
from toybox.benchmark import JUDGE, PHOTOS, photo_seed, toybox_judge
from toybox.prompts import Prompt
from toybox.scenes import SCENES
from toybox.sheet import contact_sheet
from toybox.subjects import SUBJECTS, Subject, render_photos, render_subject, save_photos
from training import config as configs
from training import presets
from training.loop import train as train_adapter

ADAPTER, TRIGGER = "subject", "sks"


@dataclass(frozen=True)
class Runner:
    """Run cases and score their images."""

    base: str
    device: str
    sprites: Path
    sheets: Path | None
    judge: ToyboxJudge
    timed: bool

    def measure(self, case: Case) -> Row:
        """Generate the images of one case and score them."""
        subject, seconds = SUBJECTS[case.subject], None
        photos = render_photos(self.sprites, subject.name, PHOTOS, photo_seed(subject))
        if case.method == CEILING:
            images = render_prompts(self.sprites, subject, case.seed)
        elif case.method == BASE:
            images = generate_prompts(load_base(self.base, self.device), subject, case.seed)
        else:
            pipe, seconds = self.train(case, subject, photos)
            images = generate_prompts(pipe, subject, case.seed, ((ADAPTER, 1.0),))
        if self.sheets:
            self.sheets.mkdir(parents=True, exist_ok=True)
            name = f"{case.subject} {case.method} {case.seed} {case.summary}".strip()
            contact_sheet([*photos, *images], columns=PHOTOS).save(self.sheets / f"{name}.png")
        return asdict(case) | {"seconds": seconds if self.timed else None} | self.judge_images(subject, images)

    def train(self, case: Case, subject: Subject, photos: list[Image.Image]) -> tuple[StableDiffusionPipeline, float]:
        """Return the pipeline with an adapter trained on the photos, and the seconds this took."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self.save_photos(case, photos, folder / "photos")
            config = configs.parse(
                {"name": ADAPTER, "photos": [folder / "photos"], "class_noun": subject.noun, "trigger": TRIGGER,
                 "method": case.method, "seed": case.seed, "device": self.device} | case.settings
            )  # fmt: skip
            start = time.perf_counter()
            pipe = load_base(self.base, self.device)
            train_adapter(config, folder, pipe=pipe)
            return pipe, round(time.perf_counter() - start, 1)

    def save_photos(self, case: Case, photos: list[Image.Image], folder: Path) -> None:
        """Write the photos of a case to a folder."""
        save_photos(photos, folder)

    def judge_images(self, subject: Subject, images: Sequence[Image.Image]) -> Row:
        """Return the nearest name of each image, and the scene or attribute that the judge predicts."""
        verdicts = self.judge.verdicts(images)
        pairs = zip(subject.prompts, verdicts, strict=True)
        seen = [verdict.scene if prompt.scene else verdict.attribute for prompt, verdict in pairs]
        return {"nearest": [verdict.object for verdict in verdicts], "seen": seen}


def make_parser(description: str | None, output: Path) -> argparse.ArgumentParser:
    """Create the parser with the options that the benchmark of subjects and the sweep share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sprites", type=Path, required=True, help="the assets folder of the sprites' package")
    parser.add_argument("--judge", type=Path, default=JUDGE, help="checkpoint of another judge")
    parser.add_argument("--base", default=sources.TOYBOX, help="toybox, or a folder with a model of the same kind")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=output, help="results file; the report goes to .md beside it")
    parser.add_argument("--untimed", action="store_true", help="record no seconds, for a machine that is shared")
    parser.add_argument("--sheets", type=Path, help="folder for a contact sheet of each run: photos, then images")
    return parser


def set_up(args: argparse.Namespace, kind: type[Runner] = Runner) -> tuple[dict[str, Any], Runner]:
    """Return the facts that all results of one file must share, and the runner."""
    facts = {
        "base": file_fingerprint(args.base),
        "judge": file_fingerprint(args.judge),
        "device": args.device,
        "presets": {name: presets.defaults(sources.TOYBOX, name, "balanced") for name in COMPARED},
    }
    judge = toybox_judge(args.judge, args.sprites)
    return facts, kind(args.base, args.device, args.sprites, args.sheets, judge, not args.untimed)


def load_base(base: str, device: str) -> StableDiffusionPipeline:
    """Load the embedded base model, or another that uses its presets and guidance scale."""
    pipe = loading.load_base(base, device)
    pipe.base_name = sources.TOYBOX
    return pipe


def file_fingerprint(path: str | Path) -> str:
    """Return the first digits of the SHA-256 of a file, or of a base model's UNet."""
    folder = sources.ASSETS / sources.TOYBOX if path == sources.TOYBOX else Path(path)
    file = next(iter(sorted((folder / "unet").glob("*.safetensors"))), folder)
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def generate_prompts(
    pipe: StableDiffusionPipeline, subject: Subject, seed: int, active: ActiveAdapters = ()
) -> list[Image.Image]:
    """Generate an image for each of a subject's prompts, from the same noise whatever adapter is active."""
    name = f"{TRIGGER} {subject.noun}"
    prompts = [f"a photo of {prompt.text}".replace("{subject}", name) for prompt in subject.prompts]
    requests = [Request(prompt, 1000 * (seed + 1) + number, active) for number, prompt in enumerate(prompts)]
    return generate_batch(pipe, requests, Settings(steps=25))


def render_prompts(sprites: Path, subject: Subject, seed: int) -> list[Image.Image]:
    """Render a subject's prompts; in a random scene if a prompt names none."""
    rng = np.random.default_rng((778, seed))

    def scene_of(prompt: Prompt) -> str:
        return prompt.scene or str(rng.choice(list(SCENES)))

    return [render_subject(sprites, subject, scene_of(prompt), prompt.attribute, rng) for prompt in subject.prompts]
