"""The subjects of the benchmark: truly new, asked for by its own prompts, told apart and counted rightly."""

import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks import subjects as benchmark
from benchmarks import sweep
from benchmarks.subjects import Case, References, photo_seed, render_prompts, report, run_missing, shares
from toybox.judge import load_judge
from toybox.attributes import ATTRIBUTES
from toybox.scenes import SCENES
from toybox.subjects import LIVE_PROMPTS, OBJECT_PROMPTS, SUBJECTS, Subject, find_subject, render_photos
from toybox.objects import OBJECTS, find_object
from toybox.rendering import IMAGE_SIZE

FACTS = {"base": "a", "judge": "b", "device": "cpu"}


def test_the_prompts_are_the_benchmarks_in_its_order(shared: Path) -> None:
    """25 for objects, 25 for live subjects."""
    text = (shared / "data" / "dreambooth" / "prompts_and_classes.txt").read_text()
    objects, live = (re.findall(r"^'(.*)'\.format", part, re.MULTILINE) for part in text.split("Live Subject Prompts"))
    for prompts, published in ((OBJECT_PROMPTS, objects), (LIVE_PROMPTS, live)):
        assert [prompt.text for prompt in prompts] == [prompt.replace("{0} {1}", "{subject}") for prompt in published]
        assert len(prompts) == 25


def test_the_world_has_every_scene_and_look_that_a_prompt_names() -> None:
    """And each prompt names one of them."""
    for prompt in (*OBJECT_PROMPTS, *LIVE_PROMPTS):
        assert (prompt.scene in SCENES) != (prompt.attribute in ATTRIBUTES)


def test_the_subjects_are_ten_that_the_base_has_never_seen() -> None:
    """Five live, five objects; what is drawn from known things is no drawing of the world; their nouns are known."""
    known = {thing.code for thing in OBJECTS}
    assert Counter(subject.live for subject in SUBJECTS.values()) == {True: 5, False: 5}
    for subject in SUBJECTS.values():
        assert find_object(subject.object).code not in known or subject.hue_shift or subject.head
        assert subject.noun in {thing.noun for thing in OBJECTS}


def test_every_subject_looks_like_no_other(sprites: Path) -> None:
    """Nor like the things it was put together from."""
    drawn = {subject.draw(sprites).tobytes() for subject in SUBJECTS.values()}
    plain = {Subject(name, "", False, name).draw(sprites).tobytes() for name in ("parrot", "teddy bear", "pig")}
    assert len(drawn) == len(SUBJECTS)
    assert not drawn & plain


def test_another_head_covers_its_own(sprites: Path) -> None:
    """In the middle at the top; the foot stays the body's."""
    head, body, joined = (
        Subject(thing, "toy", False, thing, head=other).draw(sprites)
        for thing, other in (("pig", ""), ("teddy bear", ""), ("teddy bear", "pig"))
    )
    middle = body.width // 2
    assert joined.getpixel((middle, body.height // 4)) == pytest.approx(
        head.getpixel((middle, body.height // 2)), abs=3
    )
    assert joined.getpixel((middle, body.height - 4)) == body.getpixel((middle, body.height - 4))


def test_a_subject_of_the_benchmark_is_photographed_by_its_name(sprites: Path) -> None:
    """In other scenes with another seed; and a wrong name lists the subjects."""
    first, again, other = (render_photos(sprites, "pig bear", 2, seed)[0].tobytes() for seed in (0, 0, 1))
    assert first == again != other
    assert find_subject("octopus", hue_shift=0.5).hue_shift == 0.5
    with pytest.raises(ValueError, match=r"choose one of octopus, .*pig bear"):
        find_subject("parrot")


def test_the_ceiling_is_a_render_of_every_prompt(sprites: Path) -> None:
    """Others with another seed."""
    first, other = (render_prompts(sprites, SUBJECTS["penguin"], seed) for seed in (0, 1))
    assert [picture.size for picture in first] == [(IMAGE_SIZE, IMAGE_SIZE)] * 25
    assert all(one.tobytes() != another.tobytes() for one, another in zip(first, other, strict=True))


def test_nearest_name_by_mean_features() -> None:
    """Means are normalized first."""
    references = References.of({"fox": torch.eye(3)[[0, 0]], "owl": torch.eye(3)[[1, 2]]})
    described = torch.tensor([[0.9, 0.3, 0.3], [0.5, 0.6, 0.6], [0.6, 0.8, 0.0]])
    assert references.nearest(described) == ["fox", "owl", "fox"]


def row(case: Case, shown: int, placed: int, dressed: int, seconds: float | None = None) -> dict:
    """A finished run with so many right pictures; an object's prompts name 20 scenes, then 5 looks."""
    prompts = OBJECT_PROMPTS
    return {
        **asdict(case),
        "seconds": seconds,
        "nearest": [case.subject] * shown + ["fox"] * (25 - shown),
        "seen": [
            *(prompt.scene if index < placed else "elsewhere" for index, prompt in enumerate(prompts[:20])),
            *(prompt.attribute if index < dressed else "" for index, prompt in enumerate(prompts[20:])),
        ],
    }


def test_scenes_and_looks_are_counted_among_the_prompts_that_name_them() -> None:
    """The subject among all of them, and among either."""
    assert shares(row(Case("octopus", "lora", 0), 22, 15, 1, 70.0)) == {
        "shown": 0.88,
        "shown in scenes": 1.0,
        "shown in looks": 0.4,
        "scene": 0.75,
        "look": 0.2,
        "seconds": 70.0,
    }


def test_table_shows_mean_range_and_verdicts() -> None:
    """Verdicts for trained methods only, and none for two seeds."""
    rows = [row(Case("octopus", "renders", seed), 25, 20, 5) for seed in range(3)]
    rows += [row(Case("octopus", "lora", seed), 20 + seed, 16, 2, 80.0 + 5 * seed) for seed in range(3)]
    rows += [row(Case("robot", "lora", seed), 20 + seed, 16, 2, 80.0 + 5 * seed) for seed in range(3)]
    rows += [row(Case("octopus", "hra", seed), 10, 20, 2, 100.0) for seed in range(2)]
    sessions = [{"machine": {"processor": "slow", "load average": str(n)}, "runs": 5} for n in range(2)]
    said = report({"device": "cpu", "sessions": sessions, "rows": rows})
    assert "cpu. processor slow (10 runs). Shares" in said
    renders = "| renders | 3 |" + " 1.00 (1.00 to 1.00) |" * 5 + "  |"
    assert renders in said
    shown = "0.84 (0.80 to 0.88) ✓ | 1.00 (1.00 to 1.00) | 0.20 (0.00 to 0.40)"
    assert f"| lora | 6 | {shown} | 0.80 (0.80 to 0.80) ✗ | 0.40 (0.40 to 0.40) | 85 (80 to 90) ✓ |" in said
    assert "| hra | 2 | 0.40 (0.40 to 0.40) ? |" in said
    assert "| robot |  | 0.84 / 0.80 |  |" in said


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


def test_results_of_two_bases_are_not_mixed(tmp_path: Path) -> None:
    """The file stays as it is."""
    output = tmp_path / "subjects.json"
    run_missing(output, FACTS, [Case("octopus", "lora", 0)], lambda case: row(case, 20, 20, 5, 1.0))
    before = output.read_bytes()
    with pytest.raises(ValueError, match="another base"):
        run_missing(output, FACTS | {"base": "c"}, [Case("octopus", "hra", 0)], lambda case: row(case, 20, 20, 5, 1.0))
    assert output.read_bytes() == before


def test_photos_of_two_subjects_are_taken_in_scenes_of_their_own() -> None:
    """By a seed each."""
    assert len({photo_seed(subject) for subject in SUBJECTS.values()}) == len(SUBJECTS)


def test_the_sweep_keeps_what_shows_the_subject_most_while_scenes_stay() -> None:
    """Or keeps scenes best, where no rate keeps them well enough."""
    low, high = sweep.rates("lora")

    def swept(placed: dict[float, int]) -> list[dict]:
        shown = {low: 10, high: 20}
        cases = [(rate, sweep.change("lora", "robot", learning_rate=rate)) for rate in placed]
        return [row(case, shown[rate], placed[rate], 0) for rate, case in cases]

    assert sweep.best_rate(swept({low: 20, high: 18}), "lora") == high
    assert sweep.best_rate(swept({low: 20, high: 12}), "lora") == low
    assert sweep.best_rate(swept({low: 14, high: 10}), "lora") == low


def test_benchmarks_print_their_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Including required options; the judge is part of the repository."""
    monkeypatch.setattr("sys.argv", ["subjects", "--help"])
    with pytest.raises(SystemExit, match="0"):
        benchmark.main()
    assert "python -m benchmarks.subjects --sprites DIR [" in capsys.readouterr().out
    assert not load_judge(benchmark.JUDGE).training
