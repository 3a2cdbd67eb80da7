"""Interleaved timing."""

from app.benchmarking.timing import median_with_range, ratios, time_interleaved


def test_functions_take_turns_and_the_warm_up_round_is_not_counted():
    calls: list[str] = []
    seconds = time_interleaved({name: lambda n=name: calls.append(n) for name in "ab"}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert {name: len(own) for name, own in seconds.items()} == {"a": 2, "b": 2}
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert median_with_range([3.0, 1.0, 2.0]) == "2 (1 to 3)"


def test_alternate_reverses_the_order_in_every_other_round():
    calls: list[str] = []
    functions = {name: lambda n=name: calls.append(n) for name in "ab"}
    time_interleaved(functions, rounds=3, warm_up=False, alternate=True)
    assert "".join(calls) == "abbaab"


def test_three_rounds_are_measured_even_when_time_is_up():
    assert [len(time_interleaved({"a": int}, rounds, minutes=0)["a"]) for rounds in (1, 9)] == [1, 3]
