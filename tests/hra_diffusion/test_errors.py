"""Values in messages."""

import pytest

from hra_diffusion.errors import shown


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, [["x"] * 1000] * 1000, 10**10_000, {"a" * 1000: 1}, [[[[[[]]]]]], b"\xff" * 10**6, "\ud800"],
    ids=lambda value: type(value).__name__,
)
def test_values_from_outside_are_shown_shortly(value):
    assert 0 < len(shown(value)) <= 100


def test_small_values_are_shown_whole():
    assert [shown(value) for value in ("dog", 5, 1.5, ["a"], None)] == ["'dog'", "5", "1.5", "['a']", "None"]
