"""The benchmarks' results as the README tells them: nothing that was not measured, nothing left out."""

import importlib
import json
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks import bench_growth, common, tables


def test_every_benchmark_has_its_claim_in_the_readme():
    files = {path.stem for path in (ROOT / "benchmarks").glob("bench_*.py")}
    assert files == {claim.name for claim in tables.CLAIMS}
    assert tables.costs() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_tells_how_toybox_is_taught():
    assert tables.taught() in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [claim.name for claim in tables.CLAIMS])
def test_every_benchmark_says_how_it_is_used(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(f"benchmarks.{name}").main()
    assert f"python -m benchmarks.{name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("steps", "first", "verdict"),
    [
        ((1.1, 1.4, 3.0, 7.4), 4, "missed"),  # 7 times as long at 32 times the rank, but 64 times what 4 adds
        ((0.99, 1.1, 1.4, 1.7), 16, "met"),  # what rank 4 adds is below the noise
    ],
)
def test_growth_in_rank_is_judged_above_the_frozen_unet(steps, first, verdict):
    """By what the adapter adds to it, from the least rank that shows."""
    spent = {("hra, rank", rank): [step] * 3 for rank, step in zip(bench_growth.RANKS, steps, strict=True)}
    bar = bench_growth.linear({bench_growth.FLOOR: [1.0] * 3, **spent}, "hra, rank")
    assert bar.verdict == verdict
    assert bar.what.endswith(f"what {first} adds")


def test_growth_that_no_lower_rank_shows_is_left_undecided():
    """One round below the frozen UNet's own is the machine's noise, not the rank's cost."""
    spent = {("hra, rank", rank): [1.2, 0.99, 1.3] for rank in bench_growth.RANKS}
    spent["hra, rank", bench_growth.RANKS[-1]] = [2.0] * 3
    assert bench_growth.linear({bench_growth.FLOOR: [1.0] * 3, **spent}, "hra, rank").verdict == "undecided"


def test_without_results_nothing_is_claimed(tmp_path):
    said = tables.costs(tmp_path)
    assert said.count(f"| {tables.NOT_MEASURED} | {tables.NOT_MEASURED} |") == len(tables.CLAIMS)
    assert "✓" not in said and "✗" not in said and "<details>" not in said
    assert tables.NOT_MEASURED in tables.taught(tmp_path)


def test_a_result_is_told_with_its_bars_its_machine_and_its_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks/bench_step.py", "--side", "8", "--output", str(tmp_path)])
    given = common.arguments(None, cpu={"side": 32, "base": "sd1"}, cuda={"side": 64})
    assert (given.side, given.base, given.rounds) == (8, "sd1", 5)
    bars = [common.Bar("a", 1.05, 1.1), common.Bar("b", 1.2, 1.1), common.Bar("c", 1.2, 1.1, at_least=True)]
    bars += [common.Bar.of("d", [1.0, 3.0, 1.05], 1.1), common.Bar.of("e", [1.0, 1.0], 1.1)]
    common.publish(common.Report("said", ("method", "s"), [("hra", "1 (1 to 1)")], bars, ["a note"]), given)
    printed, said = capsys.readouterr().out, tables.costs(tmp_path)
    assert "a 1.05: met, ≤ 1.1" in printed and "b 1.2: missed, ≤ 1.1" in printed
    assert "a **1.05** ✓; b **1.2** ✗; c **1.2** ✓" in said
    assert "d **1.05 (1 to 3)** ✓; e **1 (1 to 1)** ?" in said, "two rounds decide nothing"
    for part in ("| hra | 1 (1 to 1) |", "python -m benchmarks.bench_step --side 8", "a note"):
        assert part in printed and part in said
    assert said.count("`python -m benchmarks.bench_step --side 8") == 1, "the row tells how its figures were made"
    assert "on toybox" not in said
    facts = json.loads((tmp_path / "bench_step.json").read_text())
    assert facts["machine"]["torch"] in said
    assert f"Commit {facts['commit']}." in said if common.commit() else "commit" not in facts


def test_the_commit_is_the_codes(tmp_path):
    """Results written since, as by the benchmark before, do not make the code another."""

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    assert common.commit(tmp_path) == ""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    code, result = tmp_path / "code.py", tmp_path / "benchmarks" / "results" / "a.json"
    for file in (code, result):
        file.write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "a")
    made = common.commit(tmp_path)
    result.write_text("2")
    assert made and common.commit(tmp_path) == made
    code.write_text("2")
    assert common.commit(tmp_path) == f"{made}-dirty"


def test_figures_of_another_base_than_the_benchmarks_own_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks/bench_floor.py", "--base", "toybox", "--output", str(tmp_path)])
    given = common.arguments(None, cpu={"base": "sd1"}, cuda={})
    common.publish(common.Report("said", ("step", "s"), [], [common.Bar("a", 1, 1.1)]), given)
    assert "| on toybox: a **1** ✓ | not measured | `python -m benchmarks.bench_floor --base toybox" in tables.costs(
        tmp_path
    )


def test_the_readme_is_changed_between_its_marks_only():
    other = tables.marked("other", "kept")
    old, new = (tables.marked("own", said) for said in ("old", "new"))
    assert tables.replaced(f"before\n{old}\n{other}\nafter", new) == f"before\n{new}\n{other}\nafter"
