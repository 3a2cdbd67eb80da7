"""Tests of a benchmark's options, its targets and its JSON file."""

import importlib
import json
import subprocess
import sys

import pytest

from benchmarks import bench_growth, claims, options, report, tables


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.mark.parametrize("name", [claim.name for claim in claims.CLAIMS])
def test_every_benchmark_prints_its_usage(name, monkeypatch, capsys):
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
def test_growth_in_rank_is_measured_above_the_frozen_unet(steps, first, verdict):
    """Only what the adapter adds counts, from the lowest rank whose addition exceeds the noise."""
    seconds = {("hra, rank", rank): [step] * 3 for rank, step in zip(bench_growth.RANKS, steps, strict=True)}
    target = bench_growth.linear({bench_growth.FLOOR: [1.0] * 3, **seconds}, "hra, rank")
    assert target.verdict == verdict
    assert target.what.endswith(f"what {first} adds")


def test_growth_is_undecided_if_no_lower_rank_exceeds_the_noise():
    """A round faster than the frozen UNet's is noise of the machine, not the cost of the rank."""
    seconds = {("hra, rank", rank): [1.2, 0.99, 1.3] for rank in bench_growth.RANKS}
    seconds["hra, rank", bench_growth.RANKS[-1]] = [2.0] * 3
    target = bench_growth.linear({bench_growth.FLOOR: [1.0] * 3, **seconds}, "hra, rank")
    assert target.verdict == "undecided"


def test_a_result_is_shown_with_its_targets_machine_and_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks/bench_step.py", "--side", "8", "--output", str(tmp_path)])
    args = options.parse_options(None, cpu={"side": 32, "base": "sd1"}, cuda={"side": 64})
    assert (args.side, args.base, args.rounds) == (8, "sd1", 5)
    Target = report.Target
    targets = [Target("a", 1.05, 1.1), Target("b", 1.2, 1.1), Target("c", 1.2, 1.1, at_least=True)]
    targets += [Target.of("d", [1.0, 3.0, 1.05], 1.1), Target.of("e", [1.0, 1.0], 1.1)]
    result = report.Report("conditions", ("method", "s"), [("hra", "1 (1 to 1)")], targets, ["a note"])
    report.publish(result, args)
    printed, page = capsys.readouterr().out, tables.page(tmp_path)
    assert "a 1.05: met, ≤ 1.1" in printed and "b 1.2: missed, ≤ 1.1" in printed
    assert "| a | **1.05** | ≤ 1.1 | ✓ |\n| b | **1.2** | ≤ 1.1 | ✗ |\n| c | **1.2** | ≥ 1.1 | ✓ |" in page
    assert "| d | **1.05 (1 to 3)** | ≤ 1.1 | ✓ |" in page
    assert "| e | **1 (1 to 1)** | ≤ 1.1 | ? |" in page, "two rounds decide nothing"
    assert "| 3 of 5 met, 1 undecided | not measured |" in page
    for part in ("| hra | 1 (1 to 1) |", "python -m benchmarks.bench_step --side 8", "a note"):
        assert part in printed and part in page
    assert page.count("`python -m benchmarks.bench_step --side 8") == 1, "the command that made the figures"
    assert "on toybox:" not in page
    facts = json.loads((tmp_path / "bench_step.json").read_text())
    assert facts["machine"]["torch"] in page
    assert f"Commit {facts['commit']}." in page if report.commit_hash() else "commit" not in facts


def test_figures_of_another_base_model_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks/bench_floor.py", "--base", "toybox", "--output", str(tmp_path)])
    args = options.parse_options(None, cpu={"base": "sd1"}, cuda={})
    report.publish(report.Report("conditions", ("step", "s"), [], [report.Target("a", 1, 1.1)]), args)
    page = tables.page(tmp_path)
    assert "| on toybox: 1 of 1 met | not measured |" in page
    assert "**CPU**: `python -m benchmarks.bench_floor --base toybox" in page


def test_commit_hash_ignores_changed_results(tmp_path):
    """Results that an earlier benchmark has just written don't mark the commit as dirty."""
    assert report.commit_hash(tmp_path) == ""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    code, result = tmp_path / "code.py", tmp_path / "benchmarks" / "results" / "a.json"
    for file in (code, result):
        file.write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    commit = report.commit_hash(tmp_path)
    result.write_text("2")
    assert commit and report.commit_hash(tmp_path) == commit
    code.write_text("2")
    assert report.commit_hash(tmp_path) == f"{commit}-dirty"
