"""The queue, with training in real processes."""

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
    """Poll until the condition is true. Fails after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


@pytest.fixture
def queue(tmp_path):
    """A queue whose processes are ended after the test."""
    queue = Queue(tmp_path)
    yield queue
    for name in queue.waiting():
        queue.cancel(name)
    if (current := queue.current()) and current["pid"]:
        os.kill(current["pid"], signal.SIGKILL)
    wait_for(lambda: queue.current() is None)


def test_runs_are_trained_in_order(queue, settings):
    for name in ("a", "b"):
        queue.add(settings(name=name))
    assert [job.run.name for job in queue.jobs()] == ["a", "b"] and queue.job("b").place == 1
    queue.start()
    wait_for(lambda: queue.job("a").status == "running")
    assert queue.job("b").status == "waiting", "one run at a time"
    wait_for(lambda: queue.job("b").status == "finished")
    assert queue.job("a").run.adapter.is_file() and queue.job("b").run.adapter.is_file()
    wait_for(lambda: queue.current() is None)


def test_waiting_runs_can_be_moved_cancelled_and_resumed(queue, settings):
    for name in ("a", "b", "c"):
        queue.add(settings(name=name))
    queue.move("c", 0)
    assert queue.waiting() == ["c", "a", "b"]
    queue.cancel("a")
    assert queue.waiting() == ["c", "b"] and queue.job("a").status == "stopped"
    queue.resume("a")
    assert queue.waiting() == ["c", "b", "a"]
    with pytest.raises(RunError, match="is not waiting in the queue"):
        queue.move("z", 0)
    with pytest.raises(RunError, match="is waiting: there is nothing to resume"):
        queue.resume("a")
    with pytest.raises(RunError, match="called 'a' exists already"):
        queue.add(settings(name="a"))


def test_stop_saves_a_checkpoint_from_which_the_run_resumes(queue, settings):
    queue.add(settings(steps=2000, checkpoint_every=1000, sample_every=0))
    queue.start()
    wait_for(lambda: '"event": "step"' in events(queue, "Rex"))
    with pytest.raises(RunError, match="is running: there is nothing to resume"):
        queue.resume("Rex")
    queue.stop("Rex")
    wait_for(lambda: queue.job("Rex").status == "stopped")
    step = queue.job("Rex").step
    assert 0 < step < 2000 and queue.job("Rex").run.checkpoints()
    queue.resume("Rex")
    queue.start()
    wait_for(lambda: queue.job("Rex").run.state["status"] == "running")
    assert queue.job("Rex").step == step


def test_stop_while_the_base_model_loads(queue, settings):
    queue.add(settings())
    queue.start()
    wait_for(lambda: queue.current() and queue.current()["pid"])
    time.sleep(0.5)  # the process has started, but the base model is not loaded
    queue.stop("Rex")
    wait_for(lambda: queue.job("Rex").status in ("stopped", "failed", "finished"))
    assert queue.job("Rex").status == "stopped"


def test_a_killed_run_fails_with_a_reason_and_the_next_one_is_trained(queue, settings):
    queue.add(settings(steps=5000, sample_every=0))
    queue.add(settings(name="next"))
    queue.start()
    wait_for(lambda: '"event": "step"' in events(queue, "Rex"))
    os.kill(queue.current()["pid"], signal.SIGKILL)
    wait_for(lambda: queue.job("Rex").status == "failed")
    assert "killed, most likely for lack of memory; try a smaller batch" in queue.job("Rex").reason
    wait_for(lambda: queue.job("next").status == "finished")


def test_a_waiting_run_without_a_folder_is_skipped(queue, settings):
    for name in ("gone", "next"):
        queue.add(settings(name=name))
    shutil.rmtree(queue.output / "gone")
    queue.start()
    wait_for(lambda: queue.job("next").status == "finished")


def test_a_run_without_a_process_has_died_and_can_be_resumed(queue, settings):
    run = queue.add(settings())
    queue._list.unlink()  # as after a power cut: a dispatcher had taken the run
    run.write_state("running", 3, 4)
    assert queue.job("Rex").status == "died"
    queue.resume("Rex")
    queue.start()
    wait_for(lambda: queue.job("Rex").status == "finished")


def test_a_run_that_cannot_start_fails_with_a_reason(queue, settings, photos):
    config = settings()
    queue.add(config.model_copy(update={"base": str(photos)}))
    queue.start()
    wait_for(lambda: queue.job("Rex").status == "failed")
    assert "holds no model_index.json" in queue.job("Rex").reason


def test_a_run_of_the_command_line_is_listed_but_cannot_be_stopped(queue, settings, tmp_path):
    statuses = []

    def check(event):
        if isinstance(event, Step) and event.step == 2:
            statuses.append(queue.job("Rex").status)
            with pytest.raises(RunError, match="stop a run of the command line with Ctrl-C"):
                queue.stop("Rex")

    train(settings(), tmp_path, [check])
    assert statuses == ["running"] and queue.job("Rex").status == "finished"


def test_samples_on_request(settings, tmp_path):
    def request(event):
        if isinstance(event, Step) and event.step == 1:
            Queue(tmp_path).job("Rex").run.request_samples()

    train(settings(sample_every=0, steps=3), tmp_path, [request])
    assert sorted(path.name for path in (tmp_path / "Rex" / "samples").iterdir()) == [
        "000000-0.png", "000001-0.png", "000003-0.png"]  # fmt: skip


def test_names_cannot_leave_the_output_folder(queue):
    for name in ("../x", "/etc", "..", ".queue"):
        with pytest.raises(ValueError, match="the name"):
            queue.job(name)


def events(queue, name):
    """Return the text of the run's log so far."""
    log = queue.output / name / "events.jsonl"
    return log.read_text() if log.exists() else ""
