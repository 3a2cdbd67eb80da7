"""Runs on subjects: train an adapter on photos, generate the benchmark's prompts and let the judge score the images."""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.subject_results import BASE, CEILING, Case, Row
from hra_diffusion.adapters.methods import COMPARED
from hra_diffusion.adapters.state import ActiveAdapters
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate_batch
from hra_diffusion.models import loading, sources
from toybox.attributes import ATTRIBUTES
from toybox.drawing import Rng
from toybox.judge import ATTRIBUTE_NAMES, SCENE_NAMES, Judge, classify, load_judge, object_features
from toybox.labels import Label
from toybox.objects import OBJECTS
from toybox.prompts import Prompt
from toybox.rendering import render_image
from toybox.scenes import SCENES
from toybox.shards import stack
from toybox.sheet import contact_sheet
from toybox.subjects import SUBJECTS, Subject, render_photos, render_subject, sample_scenes, save_photos
from training import config as configs
from training import presets
from training.loop import train as train_adapter

PHOTOS = 5
RENDERS = 8
"""Renders of each object and subject over which the judge's features are averaged."""
JUDGE = Path(__file__).with_name("judge.safetensors")
ADAPTER, TRIGGER = "subject", "sks"


@dataclass(frozen=True)
class References:
    """Names of objects and subjects, and the normalized mean of the judge's features of each, (M, C)."""

    names: Sequence[str]
    means: Tensor

    @classmethod
    def of(cls, features: Mapping[str, Tensor]) -> "References":
        """Average the features (N, C) of each name's images."""
        return cls(list(features), F.normalize(torch.stack([own.mean(0) for own in features.values()]), dim=1))

    def nearest(self, features: Tensor) -> list[str]:
        """Return the name with the nearest mean for each row of features (N, C)."""
        return [self.names[index] for index in (features @ self.means.T).argmax(1)]


@dataclass(frozen=True)
class Runner:
    """Run cases and score their images."""

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
        values = stack(images)
        predicted = classify(self.judge, values)
        seen = [
            SCENE_NAMES[scene] if prompt.scene else ATTRIBUTE_NAMES[attribute]
            for prompt, scene, attribute in zip(subject.prompts, predicted.scenes, predicted.attributes, strict=True)
        ]
        return {"nearest": self.references.nearest(object_features(self.judge, values)), "seen": seen}


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
    judge = load_judge(args.judge)
    facts = {
        "base": file_fingerprint(args.base),
        "judge": file_fingerprint(args.judge),
        "device": args.device,
        "presets": {name: presets.defaults(sources.TOYBOX, name, "balanced") for name in COMPARED},
    }
    references = make_references(args.sprites, judge)
    return facts, kind(args.base, args.device, args.sprites, args.sheets, judge, references, not args.untimed)


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


def photo_seed(subject: Subject) -> int:
    """Return the seed of a subject's photos."""
    return list(SUBJECTS).index(subject.name)


def make_references(sprites: Path, judge: Judge) -> References:
    """Average the judge's features over RENDERS images of every object and subject.

    Scenes are random, every other image has an attribute. A subject's renders avoid the scenes of its photos.
    """
    rng = np.random.default_rng(777)
    features = {}
    for entry in OBJECTS:
        labels = [Label(entry.name, *phrases) for phrases in sample_phrases(rng, list(SCENES))]
        features[entry.name] = object_features(judge, stack([render_image(sprites, label, rng) for label in labels]))
    for subject in SUBJECTS.values():
        photographed = sample_scenes(np.random.default_rng(photo_seed(subject)), PHOTOS)
        others = [scene for scene in SCENES if scene not in photographed]
        renders = [render_subject(sprites, subject, *phrases, rng) for phrases in sample_phrases(rng, others)]
        features[subject.name] = object_features(judge, stack(renders))
    return References.of(features)


def sample_phrases(rng: Rng, scenes: Sequence[str]) -> list[tuple[str, str]]:
    """Sample RENDERS pairs of a scene and, in every other one, an attribute ("" in the others)."""
    attributes = list(ATTRIBUTES)
    return [(str(rng.choice(scenes)), "" if index % 2 else str(rng.choice(attributes))) for index in range(RENDERS)]


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
