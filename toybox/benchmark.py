"""The benchmark of ten held-out subjects as shipped files: photos, prompts, and what the judge compares images with.

assets/toybox-benchmark/subjects.json             name, class noun and prompts of each subject
assets/toybox-benchmark/{subject}/1.png           photos
assets/toybox-benchmark/judge.safetensors         the judge (``python -m toybox judge``)
assets/toybox-benchmark/references.safetensors    its mean features of every object and subject
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hra_diffusion.evaluation import judge as judges
from hra_diffusion.evaluation.judge import Judge, References, ToyboxJudge, object_features, stack
from hra_diffusion.files import write_text
from hra_diffusion.models.sources import ASSETS
from toybox.attributes import ATTRIBUTES
from toybox.drawing import Rng
from toybox.judge import ATTRIBUTE_NAMES, SCENE_NAMES, load_judge
from toybox.labels import Label
from toybox.objects import OBJECTS
from toybox.rendering import render_image
from toybox.scenes import SCENES
from toybox.subjects import SUBJECTS, Subject, render_photos, render_subject, sample_scenes, save_photos

FOLDER = ASSETS / "toybox-benchmark"
JUDGE = FOLDER / "judge.safetensors"
REFERENCES = "references.safetensors"
PHOTOS = 5
RENDERS = 8
"""Renders of each object and subject over which the judge's features are averaged."""


def write_benchmark(sprites: Path, folder: Path = FOLDER) -> None:
    """Write the photos, the prompts and the references for the judge in ``folder``."""
    for subject in SUBJECTS.values():
        save_photos(render_photos(sprites, subject.name, PHOTOS, photo_seed(subject)), folder / subject.name)
    write_text(folder / "subjects.json", json.dumps([describe(subject) for subject in SUBJECTS.values()], indent=1))
    judge_with_new_references(folder / JUDGE.name, sprites).save_references(folder / REFERENCES)


def toybox_judge(weights: Path, sprites: Path) -> ToyboxJudge:
    """Return the shipped judge, or another one with new references."""
    if weights == JUDGE:
        return judges.load_judge(JUDGE, FOLDER / REFERENCES)
    return judge_with_new_references(weights, sprites)


def judge_with_new_references(weights: Path, sprites: Path) -> ToyboxJudge:
    """Load a judge and render its references."""
    judge = load_judge(weights)
    return ToyboxJudge(judge, make_references(sprites, judge), list(SCENE_NAMES), list(ATTRIBUTE_NAMES))


def describe(subject: Subject) -> dict[str, Any]:
    """Return a subject's name, class noun and prompts, each with the scene or attribute that it names."""
    prompts = [
        {"text": f"a photo of {prompt.text}", "scene": prompt.scene, "attribute": prompt.attribute}
        for prompt in subject.prompts
    ]
    return {"name": subject.name, "class_noun": subject.noun, "live": subject.live, "prompts": prompts}


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
