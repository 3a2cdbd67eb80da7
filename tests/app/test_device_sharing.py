"""The page and the runs share a device: what does not fit waits, and the page gives way and returns."""

import threading

import pytest

import hra_diffusion as hra
from app.inference_session import Cancelled, InferenceSession, Preview, Result
from hra_diffusion.errors import UserError
from hra_diffusion.models import devices
from training.runs import device_use, leases
from training.runs.index import Index


@pytest.fixture
def session(base_folder, tmp_path):
    return InferenceSession(str(base_folder), "cpu", output=tmp_path)


def generation(session):
    return lambda on_step: hra.generate(session.pipe, "a dog", {}, 3, 2, hra.Settings(steps=2), on_step=on_step)


def run(index, memory):
    """A run that uses the CPU, or waits for it."""
    return device_use.begin(index, "cpu", "train", "the run Rex", memory)


def test_a_run_that_fits_shares_the_device(session, tmp_path):
    _ = session.pipe
    use = run(Index(tmp_path), 1)
    assert use.granted() and not session.hold.is_awaited()
    assert isinstance(list(session.watch(generation(session), 2, threading.Event()))[-1], Result)
    assert session.hold.neighbours() == "a run (0.0 GB)"


def test_the_page_gives_way_to_a_run_between_generations_and_returns_after_it(session, tmp_path):
    _ = session.pipe
    use = run(Index(tmp_path), devices.memory("cpu"))
    assert not use.granted()
    with session.lock:  # it generates
        give_way = threading.Thread(target=session.give_way)
        give_way.start()
        give_way.join()
        assert session.loaded
    session.give_way()
    assert not session.loaded and use.granted() and session.gave_way
    session.return_after_run()
    assert not session.loaded
    use.release()
    session.return_after_run()
    assert session.loaded and not session.gave_way


def test_a_generation_waits_for_a_run_and_says_so(session, tmp_path):
    use = run(Index(tmp_path), devices.memory("cpu"))
    updates = session.watch(generation(session), 2, threading.Event())
    assert next(updates) == Preview({}, 0.0) and session.waits_for.startswith("a run (")
    use.release()
    assert isinstance(list(updates)[-1], Result) and session.waits_for == ""


def test_a_generation_that_waits_can_be_cancelled(session, tmp_path):
    use, cancel = run(Index(tmp_path), devices.memory("cpu")), threading.Event()
    updates = session.watch(generation(session), 2, cancel)
    next(updates)
    cancel.set()
    with pytest.raises(Cancelled):
        list(updates)
    assert device_use.users(Index(tmp_path), "cpu")[0].holder == use.holder, "its place in the queue is given up"


def test_what_needs_the_base_model_at_once_is_refused_while_a_run_needs_the_memory(session, tmp_path):
    use = run(Index(tmp_path), devices.memory("cpu"))
    with pytest.raises(UserError, match=r"a run \(.* GB\) uses the device"):
        _ = session.pipe
    use.release()
    assert session.pipe is not None


def test_a_killed_neighbour_blocks_nobody(session, tmp_path):
    index = Index(tmp_path)
    use = run(index, devices.memory("cpu"))
    with index.writing() as database:  # as if its process had been killed
        database.execute("UPDATE leases SET started = 1 WHERE holder = ?", (use.holder,))
    assert session.pipe is not None


def test_leases_of_another_machine_end_with_their_heartbeat(session, tmp_path, monkeypatch):
    index = Index(tmp_path)
    use = run(index, devices.memory("cpu"))
    monkeypatch.setattr(leases, "_held", {})  # its heartbeat stops
    with index.writing() as database:
        database.execute("UPDATE leases SET space = 'elsewhere' WHERE holder = ?", (use.holder,))
    with pytest.raises(UserError):
        _ = session.pipe
    with index.writing() as database:
        database.execute("UPDATE leases SET heartbeat = heartbeat - 100 WHERE holder = ?", (use.holder,))
    assert session.pipe is not None
