"""Tests of the judge: training, resuming, features and targets."""

from pathlib import Path

import numpy as np
import pytest
import torch

from toybox.judge import (
    ATTRIBUTE_NAMES,
    FEATURES,
    FIRST_SHARD,
    OBJECT_NAMES,
    SCENE_NAMES,
    UNKNOWN,
    JudgeRecipe,
    accuracy,
    degrade,
    exam,
    examine,
    features,
    label_targets,
    load_judge,
    new_judge,
    render_judge_shards,
    train_judge,
)
from toybox.loop import Budget, strip_checkpoint
from toybox.shards import Shard, load_shards, stack
from toybox.labels import Label
from toybox.objects import OBJECTS
from toybox.rendering import render_image

SMALL = JudgeRecipe(channels=(8, 16, 32), batch=24)
CPU = torch.device("cpu")
DISCS = [OBJECTS[index].name for index in (0, 40, 80)]
SCENES = ("in the snow", "on a gray background")


def take_pictures(sprites: Path, seed: int) -> Shard:
    """Every disc in every scene, four times."""
    labels = [Label(name, scene) for name in DISCS for scene in SCENES for _ in range(4)]
    rng = np.random.default_rng(seed)
    return Shard(stack([render_image(sprites, label, rng) for label in labels]), labels)


@pytest.fixture(scope="module")
def trained(sprites: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a judge that was shown three discs in two scenes."""
    checkpoint = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    train_judge(take_pictures(sprites, 0), checkpoint, Budget(steps=100), CPU, SMALL)
    return checkpoint


def test_judge_learns_objects_and_scenes(sprites: Path, trained: Path) -> None:
    """It generalises to new renders."""
    judge, unseen = load_judge(trained, SMALL), take_pictures(sprites, 1)
    result = exam(judge, unseen)
    assert result.objects > 0.85
    assert result.scenes > 0.85
    verdict = examine(judge, unseen.values, batch=5)
    assert verdict.objects.shape == verdict.scenes.shape == verdict.attributes.shape == (24,)
    assert {OBJECT_NAMES[number] for number in verdict.objects.tolist()} <= set(DISCS)


def test_nearest_features_are_of_the_same_object(sprites: Path, trained: Path) -> None:
    """In any scene; features are normalized."""
    judge = load_judge(trained, SMALL)
    known, asked = take_pictures(sprites, 0), take_pictures(sprites, 1)
    vectors = features(judge, asked.values)
    assert vectors.shape == (24, FEATURES)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(24))
    nearest = (vectors @ features(judge, known.values).T).argmax(1).tolist()
    same = [known.labels[near].object == label.object for near, label in zip(nearest, asked.labels, strict=True)]
    assert np.mean(same) > 0.8


def assert_same_judge(*checkpoints: Path) -> None:
    """Two checkpoints hold one judge, bit for bit."""
    expected, found = (load_judge(checkpoint, SMALL).state_dict() for checkpoint in checkpoints)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_resumed_training_gives_the_same_bits(sprites: Path, tmp_path: Path) -> None:
    """One step and two more equal three in one session."""
    pictures, in_parts, at_once = take_pictures(sprites, 0), tmp_path / "in parts", tmp_path / "at once"
    assert train_judge(pictures, in_parts, Budget(steps=1), CPU, SMALL).step == 1
    for checkpoint in (in_parts, at_once):
        progress = train_judge(pictures, checkpoint, Budget(steps=3), CPU, SMALL)
        assert (progress.step, progress.pictures) == (3, 3 * SMALL.batch)
    assert_same_judge(at_once, in_parts)


def test_stripped_checkpoint_predicts_the_same(trained: Path, tmp_path: Path) -> None:
    """The published file is smaller and gives the same predictions."""
    published = tmp_path / "published.safetensors"
    strip_checkpoint(trained, published)
    assert published.stat().st_size < 0.5 * trained.stat().st_size
    assert_same_judge(trained, published)


def test_label_targets_are_class_indices() -> None:
    """The object is UNKNOWN if an image shows two, or one in other colours."""
    dressed, pair, turned = label_targets(
        [
            Label("fox", "in the snow", attribute="shiny"),
            Label("fox", "in the snow", second_object="owl"),
            Label("fox", "in the snow", attribute="shiny", hue_shift=0.5),
        ]
    )
    names = OBJECT_NAMES[dressed[0]], SCENE_NAMES[dressed[1]], ATTRIBUTE_NAMES[dressed[2]]
    assert names == ("fox", "in the snow", "shiny")
    assert pair.tolist() == [UNKNOWN, dressed[1], UNKNOWN]
    assert turned.tolist() == [UNKNOWN, *dressed[1:]]
    assert accuracy(torch.tensor([1, 2, 3]), torch.tensor([1, 0, UNKNOWN])) == 0.5


def test_judge_has_shards_of_its_own(sprites: Path, tmp_path: Path) -> None:
    """Their numbers are above the generator's."""
    render_judge_shards(sprites, tmp_path, 1, size=3)
    assert [path.stem for path in tmp_path.iterdir()] == [str(FIRST_SHARD)]
    assert len(load_shards(tmp_path).labels) == 3


def test_degraded_images_stay_similar() -> None:
    """In range, slightly changed, and equal for equal seeds."""
    signal = torch.linspace(-1, 1, 128).expand(4, 3, 128, 128).contiguous()
    rough, again = (degrade(signal, SMALL, torch.Generator().manual_seed(1)) for _ in range(2))
    assert rough.equal(again)
    assert rough.abs().max() <= 1
    assert 0.01 < (rough - signal).abs().mean() < 0.15


def test_missing_judge_names_the_stage_that_trains_it(tmp_path: Path) -> None:
    """A new judge has about 1.1 M parameters."""
    with pytest.raises(FileNotFoundError, match="`judge` stage"):
        load_judge(tmp_path / "judge.safetensors")
    assert sum(parameter.numel() for parameter in new_judge(JudgeRecipe()).parameters()) == pytest.approx(
        1.1e6, rel=0.1
    )
