"""The queue of requests for images: order, limits, cancellation."""

import contextlib

import pytest

from app.inference_session import Cancelled
from app.web.drawing_queue import MAX_REQUESTS, MAX_TURNS, REQUEST_BUDGET, VISITOR_BUDGET, DrawingQueue


@pytest.fixture
def queue():
    return DrawingQueue()


def order(queue, *requests):
    """The visitors in the order in which the device serves their (visitor, cost) requests."""
    places = [queue.place(*request, "") for request in requests]
    turns, served = [place.__enter__() for place in places], []
    while len(served) < len(turns):
        waits = [(turn, next(queue.wait(turn), 0)) for turn in turns if turn.visitor and turn not in served]
        (turn,) = [turn for turn, ahead in waits if ahead == 0]
        served.append(turn)
        places[turns.index(turn)].__exit__(None, None, None)
    return "".join(turn.visitor for turn in served)


def test_visitors_take_turns(queue):
    assert order(queue, *[("a", 1)] * 3, *[("b", 1)] * 3, ("c", 1)) == "abcabab"


def test_large_requests_count_as_many_small_ones(queue):
    assert order(queue, ("a", 30), ("a", 30), *[("b", 10)] * 4) == "abbbab"


def test_what_a_visitor_had_before_the_queue_was_empty_does_not_count(queue):
    order(queue, ("a", 1000))
    assert order(queue, ("a", 1), ("b", 1)) == "ab"


def test_one_request_runs_and_four_wait_per_visitor(queue):
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_REQUESTS):
            stack.enter_context(queue.place("a", 1, ""))
        with pytest.raises(ValueError, match="still in the queue"), queue.place("a", 1, ""):
            pass
        stack.enter_context(queue.place("b", 1, ""))
    with queue.place("a", 1, ""):
        pass


def test_the_queue_is_bounded(queue):
    with contextlib.ExitStack() as stack:
        for number in range(MAX_TURNS):
            stack.enter_context(queue.place(str(number), 1, ""))
        with pytest.raises(ValueError, match="too many requests"), queue.place("a", 1, ""):
            pass


def test_pixels_times_steps_are_bounded(queue):
    with pytest.raises(ValueError, match="times the largest request"), queue.place("a", 2048 * 2048 * 8 * 100, ""):
        pass
    with queue.place("a", REQUEST_BUDGET, ""), queue.place("a", VISITOR_BUDGET - REQUEST_BUDGET, ""):  # noqa: SIM117
        with pytest.raises(ValueError, match="still in the queue"), queue.place("a", 1, ""):
            pass


def test_cancelling_ends_the_own_requests_alone(queue):
    with queue.place("a", 1, "") as running, queue.place("b", 1, "tab") as own, queue.place("b", 1, "") as other:
        assert list(queue.wait(running)) == []
        assert next(queue.wait(own)) == 1
        assert queue.cancel("tab") and not queue.cancel("gone")
        with pytest.raises(Cancelled):
            next(queue.wait(own))
        assert next(queue.wait(other)) == 2 and not running.cancelled.is_set()
