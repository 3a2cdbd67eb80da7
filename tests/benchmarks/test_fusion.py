"""The benchmark of two subjects in one image: what is found in the halves, and what is measured."""

import pytest

from benchmarks import fusion
from toybox.subjects import SUBJECTS


def test_a_subject_counts_in_its_own_half_on_either_side():
    pair, halves = ("robot", "monkey"), [("robot", "monkey"), ("monkey", "robot"), ("robot", "robot"), ("fox", "owl")]
    assert fusion.figures(pair, halves) == (5 / 8, 1 / 2, 1 / 4)


def test_every_subject_is_trained_with_one_trigger():
    """It has the same place in all pairs."""
    first, second = (set(names) for names in zip(*fusion.PAIRS, strict=True))
    assert not first & second and first | second == set(SUBJECTS) and len(set(fusion.PAIRS)) == 9


def test_only_rotations_are_fused_and_the_table_has_a_line_for_each_way():
    found = fusion.mixes([0, 1], fusion.PAIRS[:1], ["lora", "hoft"])
    ways = [("renders", "compose"), ("base", "compose"), ("lora", "compose"), ("hoft", "compose"), ("hoft", "geodesic")]
    assert [(mix.method, mix.fusion) for mix in found] == ways * 2
    rows = {mix.key: mix._asdict() | {"halves": [("robot", "monkey" if mix.seed else "fox")]} for mix in found}
    text = fusion.report(rows)
    assert "| hoft | geodesic | 2 | 0.750 (0.500 to 1.000) | 0.500 (0.000 to 1.000) | 0.000 (0.000 to 0.000) |" in text
    assert text.count(" − ") == 3 and "| hoft geodesic − hoft compose | 0.000 (0.000 to 0.000), p 1 |" in text


def test_the_benchmark_prints_its_usage(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fusion", "--help"])
    with pytest.raises(SystemExit, match="0"):
        fusion.main()
    assert "python -m benchmarks.fusion --sprites DIR [" in capsys.readouterr().out
