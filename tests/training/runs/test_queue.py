"""The queue, with training in real processes."""

import os
import shutil
import signal
import time

import pytest

from hra_diffusion.models import devices
from training.loop import train
from training.runs import device_use, dispatch, leases
from training.runs.events import Step
from training.runs.queue import Queue
from training.runs.run_folder import RunError
from training.runs.state import MAX_RESTARTS


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
    end(queue)


def end(queue):
    """Empty a queue and end its processes."""
    for name in queue.waiting():
        queue.cancel(name)
    if run := queue.busy():
        kill(queue.trainer(run.name))
    wait_for(lambda: not leases.live(queue.index))


def kill(lease):
    """Kill the process that holds a lease, and wait for its end."""
    os.kill(lease.pid, signal.SIGKILL)
    wait_for(lambda: not lease.is_alive)


def training(queue):
    """Return the lease of the process that trains Rex, once the worker has handed it the lease."""
    lease, own = queue.trainer("Rex"), worker(queue)
    return lease if lease and (own is None or lease.pid != own.pid) else None


def worker(queue):
    """Return the lease of the worker, or None."""
    return next(iter(leases.live(queue.index, "worker cpu")), None)


@pytest.fixture(scope="module")
def worked(settings, photos, tmp_path_factory):
    """A queue whose worker has taken its runs in order, and their statuses while it trained the first one.

    Rex was killed while it trained, the folder of "gone" was deleted, "misfit" has photos as its base model, and "died"
    had been running without a process and was resumed.
    """
    queue = Queue(tmp_path_factory.mktemp("worked"))
    queue.add(settings(steps=5000, sample_every=0))
    for name in ("gone", "misfit", "died"):
        queue.add(settings(name=name).model_copy(update={"base": str(photos)} if name == "misfit" else {}))
    queue.job("died").run.write_state("running", 3, 4, queued=None)
    assert queue.job("died").status == "died"
    queue.resume("died")
    shutil.rmtree(queue.output / "gone")
    queue.start()
    wait_for(lambda: '"event": "step"' in events(queue, "Rex"))
    meanwhile = {job.run.name: job.status for job in queue.jobs()}
    kill(training(queue))
    wait_for(lambda: queue.job("died").status == "finished", 120)
    yield queue, meanwhile
    end(queue)


def test_runs_are_trained_in_order(worked):
    queue, meanwhile = worked
    assert meanwhile == {"Rex": "running", "misfit": "waiting", "died": "waiting"}, "one run at a time"
    ends = [(queue.output / name / "state.json").stat().st_mtime_ns for name in ("Rex", "misfit", "died")]
    assert ends == sorted(ends) and queue.job("died").run.adapter.is_file()
    wait_for(lambda: worker(queue) is None)


def test_a_killed_run_fails_with_a_reason_and_the_next_one_is_trained(worked):
    killed = worked[0].job("Rex")
    assert killed.status == "failed"
    assert "killed, most likely for lack of memory; try a smaller batch" in killed.reason


def test_a_waiting_run_without_a_folder_is_skipped(worked):
    queue, _ = worked
    assert not (queue.output / "gone").exists() and "gone" not in [job.run.name for job in queue.jobs()]


def test_a_run_that_cannot_start_fails_with_a_reason(worked):
    misfit = worked[0].job("misfit")
    assert misfit.status == "failed" and "contains no model_index.json" in misfit.reason


def test_a_run_without_a_process_has_died_and_can_be_resumed(worked):
    assert worked[0].job("died").status == "finished"


def test_waiting_runs_can_be_moved_cancelled_and_resumed(queue, settings):
    for name in ("a", "b", "c"):
        queue.add(settings(name=name))
    queue.move("c", 0)
    assert queue.waiting() == ["c", "a", "b"]
    queue.cancel("a")
    assert queue.waiting() == ["c", "b"] and queue.job("a").status == "stopped"
    queue.resume("a")
    assert queue.waiting() == ["c", "b", "a"]
    with pytest.raises(RunError, match="there is no run called 'z'"):
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
    wait_for(lambda: queue.job("Rex").run.state.status == "running")
    assert queue.job("Rex").step == step


def test_stop_while_the_base_model_loads(queue, settings):
    queue.add(settings())
    queue.start()
    wait_for(lambda: training(queue))
    time.sleep(0.5)  # the process has started, but the base model is not loaded
    queue.stop("Rex")
    wait_for(lambda: queue.job("Rex").status in ("stopped", "failed", "finished"))
    assert queue.job("Rex").status == "stopped"


def test_a_run_of_the_command_line_is_listed_and_can_be_stopped(queue, settings, tmp_path):
    statuses = []

    def check(event):
        if isinstance(event, Step) and event.step == 2:
            statuses.append(queue.job("Rex").status)
            queue.stop("Rex")

    with pytest.raises(KeyboardInterrupt):
        train(settings(), tmp_path, [check])
    assert statuses == ["running"] and queue.job("Rex").status == "stopped" and queue.job("Rex").step in (2, 3)
    with pytest.raises(RunError, match="is stopped: there is nothing to stop"):
        queue.stop("Rex")


def test_a_killed_worker_is_replaced_and_a_run_that_the_system_ends_waits_again_in_its_place(queue, settings):
    queue.add(settings(steps=5000, sample_every=0, checkpoint_every=2))
    queue.add(settings(name="next"))
    queue.start()
    wait_for(lambda: queue.job("Rex").step >= 2)
    process, step = training(queue), queue.job("Rex").step
    kill(worker(queue))
    queue.start()
    wait_for(lambda: worker(queue))
    assert queue.job("next").status == "waiting", "the run that outlived its worker keeps the device"
    wait_for(lambda: queue.job("Rex").step > step)
    kill(worker(queue))
    os.kill(process.pid, signal.SIGTERM)
    wait_for(lambda: not process.is_alive)
    assert queue.waiting() == ["Rex", "next"] and queue.job("Rex").step > step


def test_a_run_interrupted_with_its_worker_continues_by_itself(queue, settings):
    queue.add(settings(steps=500, sample_every=0, checkpoint_every=2))
    queue.start()
    wait_for(lambda: queue.job("Rex").step >= 2)
    own, process = worker(queue), training(queue)
    kill(own), kill(process)
    step = queue.job("Rex").step
    wait_for(lambda: queue.job("Rex").status == "died")
    wait_for(lambda: not leases.live(queue.index))  # the worker has ended, too
    queue.start()
    wait_for(lambda: queue.job("Rex").step > step)
    assert queue.job("Rex").status == "running" and queue.job("Rex").run.state.restarts == 0, "a new checkpoint"


def test_a_run_that_ends_the_machine_again_and_again_is_left_alone(queue, settings):
    run = queue.add(settings())
    for restarts in range(MAX_RESTARTS):
        run.write_state("running", 0, 4)
        queue.restore_interrupted()
        assert (run.state.status, run.state.restarts) == ("waiting", restarts + 1)
    run.write_state("running", 0, 4)
    queue.restore_interrupted()
    assert queue.job("Rex").status == "died"


def test_a_run_waits_for_the_memory_of_another_program(queue, settings):
    page = device_use.begin(queue.index, "cpu", "generate", "the page", devices.memory("cpu"))
    queue.add(settings())
    queue.start()
    wait_for(page.is_awaited)
    assert queue.job("Rex").status == "running" and queue.job("Rex").run.state.status == "waiting"
    page.release()
    wait_for(lambda: queue.job("Rex").status == "finished")


def test_each_device_trains_its_own_run(queue, settings, monkeypatch):
    monkeypatch.setattr(devices, "training_devices", lambda: ["cuda:0", "cuda:1"])
    started = []
    monkeypatch.setattr(Queue, "_start_worker", lambda self, device: started.append(device))
    queue.add(settings(name="any", device=None))
    queue.start()
    assert started == ["cuda:0", "cuda:1"]
    queue.cancel("any")
    queue.add(settings(name="second", device="cuda:1"))
    started.clear()
    queue.start()
    assert started == ["cuda:1"]
    queue.add(settings(name="third", device=None))
    taken = leases.acquire(queue.index, "run second", "train", "the run second")
    assert dispatch._next_name(queue.index, "cuda:1") == "third", "a worker skips the run that another one has taken"
    leases.release(queue.index, taken)
    queue.cancel("third")
    assert dispatch._next_name(queue.index, "cuda:0") is None and dispatch._next_name(queue.index, "cuda:1") == "second"


def test_samples_on_request(settings, tmp_path):
    def request(event):
        if isinstance(event, Step) and event.step == 1:
            Queue(tmp_path).job("Rex").run.request("sample-now")

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
