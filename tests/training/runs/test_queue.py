"""The queue: real runs in real processes, watched, stopped, killed and taken up again."""

import os
import shutil
import signal
import time

import pytest

from training.loop import train
from training.runs.events import Step
from training.runs.queue import Queue
from training.runs.run_folder import RunError


def wait_for(condition, seconds=60):
    """Poll until the condition holds; a test that waits longer has failed."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


@pytest.fixture
def queue(tmp_path):
    """A queue whose processes are gone when the test is."""
    queue = Queue(tmp_path)
    yield queue
    for name in queue.waiting():
        queue.cancel(name)
    if (current := queue.current()) and current["pid"]:
        os.kill(current["pid"], signal.SIGKILL)
    wait_for(lambda: queue.current() is None)


def test_runs_are_trained_in_order_by_processes_of_their_own(queue, settings):
    for name in ("a", "b"):
        queue.add(settings(name=name))
    assert [job.run.name for job in queue.jobs()] == ["a", "b"] and queue.job("b").place == 1
    queue.start()
    wait_for(lambda: queue.job("a").status == "running")
    assert queue.job("b").status == "waiting", "one run at a time"
    wait_for(lambda: queue.job("b").status == "finished")
    assert queue.job("a").run.adapter.is_file() and queue.job("b").run.adapter.is_file()
    wait_for(lambda: queue.current() is None)


def test_the_waiting_can_be_moved_and_cancelled(queue, settings):
    for name in ("a", "b", "c"):
        queue.add(settings(name=name))
    queue.move("c", 0)
    assert queue.waiting() == ["c", "a", "b"]
    queue.cancel("a")
    assert queue.waiting() == ["c", "b"] and queue.job("a").status == "stopped"
    queue.resume("a")
    assert queue.waiting() == ["c", "b", "a"]
    with pytest.raises(RunError, match="does not wait"):
        queue.move("z", 0)
    with pytest.raises(RunError, match="is waiting: there is nothing to resume"):
        queue.resume("a")
    with pytest.raises(RunError, match="called 'a' exists already"):
        queue.add(settings(name="a"))


def test_stop_keeps_what_was_learned_and_resume_goes_on(queue, settings):
    queue.add(settings(steps=2000, checkpoint_every=1000, sample_every=0))
    queue.start()
    wait_for(lambda: '"event": "step"' in events(queue, "Rex"))
    with pytest.raises(RunError, match="is running: there is nothing to resume"):
        queue.resume("Rex")
    queue.stop("Rex")
    wait_for(lambda: queue.job("Rex").status == "stopped")
    kept = queue.job("Rex").step
    assert 0 < kept < 2000 and queue.job("Rex").run.checkpoints()
    queue.resume("Rex")
    queue.start()
    wait_for(lambda: queue.job("Rex").run.state["status"] == "running")
    assert queue.job("Rex").step == kept


def test_stop_while_it_still_loads_is_no_failure(queue, settings):
    queue.add(settings())
    queue.start()
    wait_for(lambda: queue.current() and queue.current()["pid"])
    time.sleep(0.5)  # Python is up, the base is not
    queue.stop("Rex")
    wait_for(lambda: queue.job("Rex").status in ("stopped", "failed", "finished"))
    assert queue.job("Rex").status == "stopped"


def test_a_killed_run_says_so_and_the_next_one_is_trained(queue, settings):
    queue.add(settings(steps=5000, sample_every=0))
    queue.add(settings(name="next"))
    queue.start()
    wait_for(lambda: '"event": "step"' in events(queue, "Rex"))
    os.kill(queue.current()["pid"], signal.SIGKILL)
    wait_for(lambda: queue.job("Rex").status == "failed")
    assert "killed, most likely for lack of memory; try a smaller batch" in queue.job("Rex").reason
    wait_for(lambda: queue.job("next").status == "finished")


def test_a_waiting_run_whose_folder_is_gone_holds_up_nobody(queue, settings):
    for name in ("gone", "next"):
        queue.add(settings(name=name))
    shutil.rmtree(queue.output / "gone")
    queue.start()
    wait_for(lambda: queue.job("next").status == "finished")


def test_after_a_power_cut_a_run_is_dead_and_can_be_resumed(queue, settings):
    run = queue.add(settings())
    queue._list.unlink()  # as if a worker had taken it before the lights went out
    run.write_state("running", 3, 4)
    assert queue.job("Rex").status == "died"
    queue.resume("Rex")
    queue.start()
    wait_for(lambda: queue.job("Rex").status == "finished")


def test_a_run_that_cannot_start_says_why(queue, settings, photos):
    config = settings()
    queue.add(config.model_copy(update={"base": str(photos)}))
    queue.start()
    wait_for(lambda: queue.job("Rex").status == "failed")
    assert "holds no model_index.json" in queue.job("Rex").reason


def test_a_run_of_the_command_line_is_seen_and_not_stopped_from_here(queue, settings, tmp_path):
    seen = []

    def look(event):
        if isinstance(event, Step) and event.step == 2:
            seen.append(queue.job("Rex").status)
            with pytest.raises(RunError, match=r"stop a run of the command line there"):
                queue.stop("Rex")

    train(settings(), tmp_path, [look])
    assert seen == ["running"] and queue.job("Rex").status == "finished"


def test_samples_on_request(settings, tmp_path):
    def ask(event):
        if isinstance(event, Step) and event.step == 1:
            Queue(tmp_path).job("Rex").run.request_samples()

    train(settings(sample_every=0, steps=3), tmp_path, [ask])
    assert sorted(path.name for path in (tmp_path / "Rex" / "samples").iterdir()) == [
        "000000-0.png", "000001-0.png", "000003-0.png"]  # fmt: skip


def test_names_from_outside_cannot_leave_the_folder(queue):
    for name in ("../x", "/etc", "..", ".queue"):
        with pytest.raises(ValueError, match="the name"):
            queue.job(name)


def events(queue, name):
    """The text of the run's log so far."""
    log = queue.output / name / "events.jsonl"
    return log.read_text() if log.exists() else ""
