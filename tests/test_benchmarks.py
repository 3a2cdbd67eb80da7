"""Tests of the benchmarks' targets and of docs/benchmarks.md."""

import importlib
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks import bench_growth, claims, common, tables


def slugify(heading):
    """The anchor of a heading, as Python-Markdown's toc extension makes it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def test_every_benchmark_has_a_claim():
    files = {path.stem for path in (ROOT / "benchmarks").glob("bench_*.py")}
    assert files == {claim.name for claim in claims.CLAIMS}


def test_the_page_is_up_to_date_and_the_readme_links_to_it():
    assert tables.page() == tables.PAGE.read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "docs/benchmarks.md" in readme and "made by python -m benchmarks.tables" not in readme


def test_the_page_shows_what_the_judge_found():
    page = tables.page()
    for name in ("subjects.md", "sweep.md"):
        assert (common.RESULTS / name).read_text(encoding="utf-8").strip() in page


def test_links_of_the_summary_lead_to_headings():
    page = tables.page()
    anchors = {slugify(line.removeprefix("## ")) for line in page.splitlines() if line.startswith("## ")}
    links = re.findall(r"\]\(#([^)]+)\)", page)
    assert len(links) == len(claims.CLAIMS) and set(links) <= anchors


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
    """It counts what the adapter adds, from the lowest rank whose addition exceeds the noise."""
    spent = {("hra, rank", rank): [step] * 3 for rank, step in zip(bench_growth.RANKS, steps, strict=True)}
    bar = bench_growth.linear({bench_growth.FLOOR: [1.0] * 3, **spent}, "hra, rank")
    assert bar.verdict == verdict
    assert bar.what.endswith(f"what {first} adds")


def test_growth_is_undecided_if_no_lower_rank_exceeds_the_noise():
    """A round faster than the frozen UNet's is noise of the machine, not the cost of the rank."""
    spent = {("hra, rank", rank): [1.2, 0.99, 1.3] for rank in bench_growth.RANKS}
    spent["hra, rank", bench_growth.RANKS[-1]] = [2.0] * 3
    assert bench_growth.linear({bench_growth.FLOOR: [1.0] * 3, **spent}, "hra, rank").verdict == "undecided"


def test_without_results_nothing_is_claimed(tmp_path):
    page = tables.page(tmp_path)
    assert page.count(f"| {tables.NOT_MEASURED} | {tables.NOT_MEASURED} |") == len(claims.CLAIMS)
    assert page.count("Not measured: `python -m benchmarks.") == len(claims.CLAIMS)
    assert page.count("\n\nNot measured.") == 2, "no judge's tables either"
    assert "| ✓ |" not in page and "| ✗ |" not in page


def test_a_result_is_shown_with_its_targets_machine_and_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks/bench_step.py", "--side", "8", "--output", str(tmp_path)])
    given = common.arguments(None, cpu={"side": 32, "base": "sd1"}, cuda={"side": 64})
    assert (given.side, given.base, given.rounds) == (8, "sd1", 5)
    bars = [common.Target("a", 1.05, 1.1), common.Target("b", 1.2, 1.1), common.Target("c", 1.2, 1.1, at_least=True)]
    bars += [common.Target.of("d", [1.0, 3.0, 1.05], 1.1), common.Target.of("e", [1.0, 1.0], 1.1)]
    common.publish(common.Report("said", ("method", "s"), [("hra", "1 (1 to 1)")], bars, ["a note"]), given)
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
    assert f"Commit {facts['commit']}." in page if common.commit() else "commit" not in facts


def test_commit_ignores_changed_results(tmp_path):
    """Results that an earlier benchmark has just written do not mark the commit as dirty."""

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


def test_figures_of_another_base_model_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks/bench_floor.py", "--base", "toybox", "--output", str(tmp_path)])
    given = common.arguments(None, cpu={"base": "sd1"}, cuda={})
    common.publish(common.Report("said", ("step", "s"), [], [common.Target("a", 1, 1.1)]), given)
    page = tables.page(tmp_path)
    assert "| on toybox: 1 of 1 met | not measured |" in page
    assert "**CPU**: `python -m benchmarks.bench_floor --base toybox" in page
