"""What the missing cells of a benchmark take."""

import dataclasses
import json

import pytest

from app.cli import main
from app.commands import benchmark as command
from app.protocols.cells import Cell, Result
from app.protocols.estimate import estimate
from app.protocols.plan import BASE, Plan
from hra_diffusion.files import write_text
from training.runs import calibration
from training.runs.calibration import Calibration

PLAN = Plan(
    protocol="toybox", name="test", base={"preset": "quick", "steps": 10, "sample_prompts": ["a {subject}"]},
    subjects=("robot",), variants={"lora": {"method": "lora"}, "hra": {"method": "hra"}}, seeds=(0, 1), prompts=3,
)  # fmt: skip
SUBJECTS = PLAN.load_subjects()
MEASURED = Calibration(step=2.0, samples=3.0, start=4.0)
TRAINING = 4 + 10 * 2
"""Seconds of a run: start and steps."""
PICTURE = 3 * 25 / 15
"""Seconds of a picture of 25 denoising steps, if samples have 15."""


def store(folder, cell, **costs):
    write_text(folder / cell.folder / "cell.json", json.dumps(dataclasses.asdict(Result(cell, {}, costs))))


def test_nothing_is_finished(tmp_path):
    found = estimate(tmp_path, PLAN, SUBJECTS, lambda config: MEASURED)
    assert found.runs == {"lora": 2, "hra": 2} and found.pictures == 6 * 3 + 4 * 3  # 3 of the class with an adapter
    assert found.total == pytest.approx(4 * TRAINING + 30 * PICTURE)
    assert str(found) == "6 cells to measure: 4 runs to train, 30 pictures to generate; about 4 min on this machine."


def test_finished_cells_say_what_the_others_take(tmp_path):
    store(tmp_path, Cell("robot", BASE, 0), **{"seconds per picture": 1.0})
    store(tmp_path, Cell("robot", "hra", 0), **{"seconds": 50.0, "seconds per picture": 2.0})
    write_text(tmp_path / Cell("robot", "lora", 0).adapter, "trained, and not drawn yet")
    found = estimate(tmp_path, PLAN, SUBJECTS, lambda config: MEASURED)
    assert found.seconds[Cell("robot", "hra", 1)] == pytest.approx(4 + 50 + 6 * 1.5)
    assert found.seconds[Cell("robot", "lora", 0)] == pytest.approx(6 * 1.5)
    assert found.runs == {"lora": 1, "hra": 1} and len(found.seconds) == 4


def test_a_time_that_is_not_known_is_named(tmp_path):
    unmeasured = estimate(tmp_path, PLAN, SUBJECTS, lambda config: None)
    assert unmeasured.total is None and "how long that takes is not measured yet" in str(unmeasured)
    fails = Calibration(error="out of memory")
    found = estimate(tmp_path, PLAN, SUBJECTS, lambda config: fails if config.method == "hra" else MEASURED)
    assert found.total is None and "without hra (out of memory), whose time is not measured" in str(found)


def test_a_dry_run_writes_no_benchmark(tmp_path, capsys):
    arguments = ["toybox", "--quick", "--methods", "lora", "--subjects", "robot", "--seeds", "0", "--output",
                 str(tmp_path), "--dry-run", "--json"]  # fmt: skip
    _, parser = main.__globals__["load_command"]("benchmark")
    parsed = parser.parse_args(arguments)
    plan = command.make_plan("toybox-quick", parsed, command.given_variants(parsed))
    calibration.save(MEASURED, calibration.result_path(tmp_path, command.config_of(plan, "lora")))
    assert main(["benchmark", *arguments]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["cells"], facts["runs"]) == (2, {"lora": 1}) and facts["seconds"] > 0
    assert facts["variants"]["lora"]["method"] == "lora" and not (tmp_path / "benchmark").exists()
