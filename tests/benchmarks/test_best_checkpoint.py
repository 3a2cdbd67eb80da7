"""The benchmark of the best checkpoint: choices from a run's events, and the table."""

from benchmarks.best_checkpoint import choices, report
from training.runs.events import Scored, Validated


def test_the_choices_follow_from_scores_and_losses():
    judged = {100: 0.5, 200: 0.8, 300: 0.6}
    events = [Validated(0, 0.9), Scored(0, 0.1, 0.9)]
    events += [Scored(100, 0.9, 0.3), Scored(200, 0.4, 0.3), Scored(300, 0.5, 0.3)]
    events += [Validated(100, 0.3), Validated(200, 0.1), Validated(300, 0.2)]
    assert list(choices(events, judged).values()) == [300, 100, 100, 200, 200]
    assert list(choices([], judged).values()) == [300, 300, 300, 300, 200], "without evidence the last"


def test_the_table_compares_with_the_last_checkpoint():
    rows = {
        name: {"scores": {"100": first, "200": last}, "choices": dict.fromkeys(NAMES, 100) | {"last": 200}}
        for name, first, last in (("fox", 0.5, 0.3), ("owl", 0.2, 0.2))
    }
    lines = report(rows).splitlines()
    assert any("| last | 0.250 | +0.000 ± 0.000 | 0 | 0 | 2 |" in line for line in lines)
    assert any("| by CLIP scores | 0.350 | +0.100 ± 0.100 | 1 | 0 | 1 |" in line for line in lines)


NAMES = ("last", "named by the run", "by CLIP scores", "by validation losses", "highest score")
