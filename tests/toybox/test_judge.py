"""Tests of the judge: training, resuming, features and targets."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hra_diffusion.evaluation.judge import FEATURES, classify, object_features, stack
from toybox.checkpoints import strip_checkpoint
from toybox.judge import (
    ATTRIBUTE_NAMES,
    OBJECT_NAMES,
    SCENE_NAMES,
    UNKNOWN,
    accuracy,
    label_targets,
    load_judge,
    make_judge,
)
from toybox.judge_training import FIRST_SHARD, JudgeRecipe, augment, evaluate, render_judge_shards, train_judge
from toybox.labels import Label
from toybox.loop import Budget
from toybox.objects import OBJECTS
from toybox.rendering import render_image
from toybox.shards import Shard, load_shards

SMALL = JudgeRecipe(channels=(8, 16, 32), batch=24)
CPU = torch.device("cpu")
DISCS = [OBJECTS[index].name for index in (0, 40, 80)]
SCENES = ("in the snow", "on a gray background")


def render_discs(sprites: Path, seed: int) -> Shard:
    """Render every disc in every scene, four times."""
    labels = [Label(name, scene) for name in DISCS for scene in SCENES for _ in range(4)]
    rng = np.random.default_rng(seed)
    return Shard(stack([render_image(sprites, label, rng) for label in labels]), labels)


@pytest.fixture(scope="module")
def trained(sprites: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a judge trained on three discs in two scenes."""
    checkpoint = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    train_judge(render_discs(sprites, 0), checkpoint, Budget(steps=100), CPU, SMALL)
    return checkpoint


def test_judge_learns_objects_and_scenes(sprites: Path, trained: Path) -> None:
    """It generalises to new renders."""
    judge, unseen = load_judge(trained, SMALL.channels), render_discs(sprites, 1)
    result = evaluate(judge, unseen)
    assert result.objects > 0.85
    assert result.scenes > 0.85
    predicted = classify(judge, unseen.values, batch=5)
    assert predicted.objects.shape == predicted.scenes.shape == predicted.attributes.shape == (24,)
    assert {OBJECT_NAMES[number] for number in predicted.objects.tolist()} <= set(DISCS)


def test_nearest_features_are_of_the_same_object(sprites: Path, trained: Path) -> None:
    """In every scene; features are normalized."""
    judge = load_judge(trained, SMALL.channels)
    known, unseen = render_discs(sprites, 0), render_discs(sprites, 1)
    vectors = object_features(judge, unseen.values)
    assert vectors.shape == (24, FEATURES)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(24))
    nearest = (vectors @ object_features(judge, known.values).T).argmax(1).tolist()
    same = [known.labels[near].object == label.object for near, label in zip(nearest, unseen.labels, strict=True)]
    assert np.mean(same) > 0.8


def assert_same_judge(*checkpoints: Path) -> None:
    """Assert that checkpoints hold the same weights, bit for bit."""
    expected, found = (load_judge(checkpoint, SMALL.channels).state_dict() for checkpoint in checkpoints)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_resumed_training_gives_the_same_bits(sprites: Path, tmp_path: Path) -> None:
    """One step and two more equal three in one session."""
    images, in_parts, at_once = render_discs(sprites, 0), tmp_path / "in parts", tmp_path / "at once"
    assert train_judge(images, in_parts, Budget(steps=1), CPU, SMALL).step == 1
    for checkpoint in (in_parts, at_once):
        progress = train_judge(images, checkpoint, Budget(steps=3), CPU, SMALL)
        assert (progress.step, progress.images) == (3, 3 * SMALL.batch)
    assert_same_judge(at_once, in_parts)


def test_stripped_checkpoint_predicts_the_same(trained: Path, tmp_path: Path) -> None:
    """The published file is smaller and gives the same predictions."""
    published = tmp_path / "published.safetensors"
    strip_checkpoint(trained, published)
    assert published.stat().st_size < 0.5 * trained.stat().st_size
    assert_same_judge(trained, published)


def test_label_targets_are_class_indices() -> None:
    """The object is UNKNOWN if an image shows two, or one in other colours."""
    single, pair, other_hue = label_targets(
        [
            Label("fox", "in the snow", attribute="shiny"),
            Label("fox", "in the snow", second_object="owl"),
            Label("fox", "in the snow", attribute="shiny", hue_shift=0.5),
        ]
    )
    names = OBJECT_NAMES[single[0]], SCENE_NAMES[single[1]], ATTRIBUTE_NAMES[single[2]]
    assert names == ("fox", "in the snow", "shiny")
    assert pair.tolist() == [UNKNOWN, single[1], UNKNOWN]
    assert other_hue.tolist() == [UNKNOWN, *single[1:]]
    assert accuracy(torch.tensor([1, 2, 3]), torch.tensor([1, 0, UNKNOWN])) == 0.5


def test_judge_shards_are_numbered_above_those_of_the_base_model(sprites: Path, tmp_path: Path) -> None:
    """So that they have other seeds."""
    render_judge_shards(sprites, tmp_path, 1, size=3)
    assert [path.stem for path in tmp_path.iterdir()] == [str(FIRST_SHARD)]
    assert len(load_shards(tmp_path).labels) == 3


def test_augmented_images_stay_similar() -> None:
    """In range, slightly changed, and equal for equal seeds."""
    pixels = torch.linspace(-1, 1, 128).expand(4, 3, 128, 128).contiguous()
    augmented, again = (augment(pixels, SMALL, torch.Generator().manual_seed(1)) for _ in range(2))
    assert augmented.equal(again)
    assert augmented.abs().max() <= 1
    assert 0.01 < (augmented - pixels).abs().mean() < 0.15


def test_missing_judge_names_the_stage_that_trains_it(tmp_path: Path) -> None:
    """A new judge has about 1.1 M parameters."""
    with pytest.raises(FileNotFoundError, match="`judge` stage"):
        load_judge(tmp_path / "judge.safetensors")
    assert sum(parameter.numel() for parameter in make_judge().parameters()) == pytest.approx(1.1e6, rel=0.1)
