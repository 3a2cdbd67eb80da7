"""Scatter plots: Pareto-optimal points, and every point and label in view."""

import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from hra_diffusion.comparison.plot import HEIGHT, WIDTH, Point, curves, pareto_optimal, scatter, tick_text


def test_pareto_optimal_points():
    points = [Point("base", 0.8, 0.1), Point("a", 0.6, 0.5), Point("b", 0.5, 0.4), Point("c", 0.4, 0.6)]
    assert pareto_optimal(points) == [True, True, False, True]
    seconds = [Point("a", 30, 0.5), Point("b", 60, 0.5), Point("c", 20, 0.2)]
    assert pareto_optimal(seconds, minimize_x=True) == [True, False, True]
    assert pareto_optimal([Point("a", 1, 1), Point("b", 1, 1)]) == [True, True]


values = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(st.builds(Point, st.text("a<&\"b", max_size=4), values, values, st.just(0.5), st.just(0.0)), min_size=2,
                max_size=8))  # fmt: skip
def test_every_point_is_inside_the_plot(points):
    svg = ElementTree.fromstring(scatter(points, "x", "y"))
    circles = svg.findall("circle")
    assert len(circles) == len(points)
    for circle in circles:
        assert 0 <= float(circle.get("cx")) <= WIDTH and 0 <= float(circle.get("cy")) <= HEIGHT


def test_labels_do_not_overlap():
    points = [Point(f"run {n}", 1.0 + 0.001 * n, 0.5) for n in range(5)]
    heights = [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*font-weight', scatter(points, "x", "y"))]
    assert len(heights) == 5
    assert all(later - earlier >= 13 for earlier, later in zip(sorted(heights), sorted(heights)[1:], strict=False))


def test_curves_join_the_points_of_each_series_and_label_those_with_a_name():
    series = [[Point("", 0, 0.1), Point("a", 10, 0.5)], [Point("", 0, 0.1), Point("", 10, 0.3), Point("b", 20, 0.2)]]
    svg = ElementTree.fromstring(curves(series, "x", "y"))
    lines, circles = svg.findall("polyline"), svg.findall("circle")
    assert [len((line.get("points") or "").split()) for line in lines] == [2, 3]
    assert lines[0].get("stroke") != lines[1].get("stroke") == circles[2].get("fill")
    assert [text.text for text in svg.findall("text") if text.get("font-weight")] == ["a", "b"]


def test_large_ticks_are_in_thousands_and_millions():
    assert [*map(tick_text, (0, 0.25, 2500, 50_000, 300_000, -12_500, 1_200_000))] == [
        "0", "0.25", "2500", "50k", "300k", "-12.5k", "1.2M",
    ]  # fmt: skip
