"""Tests of the benchmark of subjects and of the sweep: scoring, tables, interrupted runs."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import masks, subjects, sweep
from benchmarks.subject_results import Case, run_missing, shares
from benchmarks.subject_runs import render_prompts
from benchmarks.subject_tables import report
from hra_diffusion.evaluation.judge import References
from toybox.benchmark import JUDGE, PHOTOS, photo_seed
from toybox.checkpoints import read_progress
from toybox.judge import load_judge
from toybox.prompts import OBJECT_PROMPTS
from toybox.rendering import IMAGE_SIZE
from toybox.subjects import SUBJECTS, render_photos, sample_scenes

FACTS = {"base": "a", "judge": "b", "device": "cpu"}


def test_ceiling_renders_every_prompt(sprites: Path) -> None:
    """Another seed gives other images."""
    first, other = (render_prompts(sprites, SUBJECTS["penguin"], seed) for seed in (0, 1))
    assert [image.size for image in first] == [(IMAGE_SIZE, IMAGE_SIZE)] * 25
    assert all(one.tobytes() != another.tobytes() for one, another in zip(first, other, strict=True))


def test_nearest_name_by_mean_features() -> None:
    """Means are normalized first."""
    references = References.of({"fox": torch.eye(3)[[0, 0]], "owl": torch.eye(3)[[1, 2]]})
    described = torch.tensor([[0.9, 0.3, 0.3], [0.5, 0.6, 0.6], [0.6, 0.8, 0.0]])
    assert references.nearest(described) == ["fox", "owl", "fox"]


def row(case: Case, subject: int, scenes: int, attributes: int, seconds: float | None = None) -> dict:
    """Return a finished run with these numbers of correct images: of the subject, of 20 scenes, of 5 attributes."""
    prompts = OBJECT_PROMPTS
    return {
        **asdict(case),
        "seconds": seconds,
        "nearest": [case.subject] * subject + ["fox"] * (25 - subject),
        "seen": [
            *(prompt.scene if index < scenes else "elsewhere" for index, prompt in enumerate(prompts[:20])),
            *(prompt.attribute if index < attributes else "" for index, prompt in enumerate(prompts[20:])),
        ],
    }


def test_shares_are_of_the_prompts_that_name_a_scene_or_an_attribute() -> None:
    """The subject is counted among all prompts and among each kind."""
    assert shares(row(Case("octopus", "lora", 0), 22, 15, 1, 70.0)) == {
        "subject right": 0.88,
        "subject right in scenes": 1.0,
        "subject right with attributes": 0.4,
        "scene right": 0.75,
        "attribute right": 0.2,
        "seconds": 70.0,
    }


def test_table_shows_mean_range_and_verdicts() -> None:
    """Verdicts for trained methods only, and none for two seeds."""
    rows = [row(Case("octopus", "renders", seed), 25, 20, 5) for seed in range(3)]
    rows += [row(Case("octopus", "lora", seed), 20 + seed, 16, 2, 80.0 + 5 * seed) for seed in range(3)]
    rows += [row(Case("robot", "lora", seed), 20 + seed, 16, 2, 80.0 + 5 * seed) for seed in range(3)]
    rows += [row(Case("octopus", "hra", seed), 10, 20, 2, 100.0) for seed in range(2)]
    sessions = [{"machine": {"processor": "slow", "load average": str(n)}, "runs": 5} for n in range(2)]
    text = report({"device": "cpu", "sessions": sessions, "rows": rows})
    assert "cpu. processor slow (10 runs). Shares" in text
    renders = "| renders | 3 |" + " 1.00 (1.00 to 1.00) |" * 5 + "  |"
    assert renders in text
    subject = "0.84 (0.80 to 0.88) ✓ | 1.00 (1.00 to 1.00) | 0.20 (0.00 to 0.40)"
    assert f"| lora | 6 | {subject} | 0.80 (0.80 to 0.80) ✗ | 0.40 (0.40 to 0.40) | 85 (80 to 90) ✓ |" in text
    assert "| hra | 2 | 0.40 (0.40 to 0.40) ? |" in text
    assert "| robot |  | 0.84 / 0.80 |  |" in text


def test_interrupted_benchmark_continues(tmp_path: Path) -> None:
    """Finished runs are kept and not repeated."""
    output, ran = tmp_path / "results" / "subjects.json", []
    cases = [Case("octopus", method, seed) for seed in range(2) for method in ("lora", "hra")]

    def measure(case: Case) -> dict:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(case)
        return row(case, 20, 20, 5, 1.0)

    with pytest.raises(KeyboardInterrupt):
        run_missing(output, FACTS, cases, measure)
    assert len(json.loads(output.read_text())["rows"]) == 2
    results = run_missing(output, FACTS, cases, lambda case: row(case, 10, 20, 5, 2.0))
    assert [session["runs"] for session in results["sessions"]] == [2, 2]
    assert [(found["method"], found["seed"], found["seconds"]) for found in results["rows"]] == [
        ("lora", 0, 1.0),
        ("hra", 0, 1.0),
        ("lora", 1, 2.0),
        ("hra", 1, 2.0),
    ]


def test_results_of_two_base_models_are_not_mixed(tmp_path: Path) -> None:
    """The file is not changed."""
    output = tmp_path / "subjects.json"
    run_missing(output, FACTS, [Case("octopus", "lora", 0)], lambda case: row(case, 20, 20, 5, 1.0))
    before = output.read_bytes()
    with pytest.raises(ValueError, match="another base"):
        run_missing(output, FACTS | {"base": "c"}, [Case("octopus", "hra", 0)], lambda case: row(case, 20, 20, 5, 1.0))
    assert output.read_bytes() == before


def test_photo_seeds_are_unique() -> None:
    """Photos of different subjects have different scenes."""
    assert len({photo_seed(subject) for subject in SUBJECTS.values()}) == len(SUBJECTS)


def test_sweep_chooses_the_rate_with_most_subjects_among_those_that_keep_the_scene() -> None:
    """If no rate keeps the scene well enough, the one that keeps it best."""
    low, high = sweep.rates("lora")

    def swept(scenes: dict[float, int]) -> list[dict]:
        subject = {low: 10, high: 20}
        cases = [(rate, sweep.change("lora", "robot", learning_rate=rate)) for rate in scenes]
        return [row(case, subject[rate], scenes[rate], 0) for rate, case in cases]

    assert sweep.best_rate(swept({low: 20, high: 18}), "lora") == high
    assert sweep.best_rate(swept({low: 20, high: 12}), "lora") == low
    assert sweep.best_rate(swept({low: 14, high: 10}), "lora") == low


def test_benchmarks_print_their_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Including required options; the judge is part of the repository."""
    monkeypatch.setattr("sys.argv", ["subjects", "--help"])
    with pytest.raises(SystemExit, match="0"):
        subjects.main()
    assert "python -m benchmarks.subjects --sprites DIR [" in capsys.readouterr().out
    assert not load_judge(JUDGE).training


def test_published_judge_has_its_progress() -> None:
    """It was written when images were called pictures."""
    assert read_progress(JUDGE).images > 500_000


def test_masks_show_where_the_subject_is_in_its_photos(sprites: Path) -> None:
    """The disc has one colour, which the background has not."""
    subject = SUBJECTS["penguin"]
    photos = render_photos(sprites, subject.name, PHOTOS, photo_seed(subject))
    for photo, mask in zip(photos, masks.render_masks(sprites, subject), strict=True):
        inside = np.asarray(mask) == 255
        colours = np.asarray(photo, float)[inside]
        assert inside.mean() > 0.1 and np.abs(colours - np.median(colours, axis=0)).max(axis=1).mean() < 20


def test_a_leaked_scene_is_that_of_a_photo_and_not_of_the_prompt() -> None:
    subject = SUBJECTS["octopus"]
    scenes = sample_scenes(np.random.default_rng(photo_seed(subject)), PHOTOS)
    found = row(Case("octopus", "lora", 0, '{"mask": "off"}'), 20, 20, 5, 1.0) | {"similarity": 0.5}
    asked = [prompt.scene for prompt in subject.prompts[:20]]
    found["seen"][:20] = [next(s for s in scenes if s != scene) if n < 5 else scene for n, scene in enumerate(asked)]
    assert masks.figures(found)["photo's scene"] == 0.25 and masks.figures(found)["scene right"] == 0.75
    text = masks.report({"device": "cpu", "sessions": [], "rows": [found]})
    assert "| lora | off | 1 | 0.800 (0.800 to 0.800) | 0.750 (0.750 to 0.750) | 0.250" in text
