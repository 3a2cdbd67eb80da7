"""The task of a cluster, without one."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from hra_diffusion.files import append_line, write_text
from training.cluster import task
from training.cluster.storage import Mirror
from training.cluster.task import Attempt, AttemptError, train_run
from training.runs import state
from training.runs.state import MAX_RESTARTS, RunState


@pytest.fixture
def stored(tmp_path):
    """A function that puts a run into the storage as an attempt left it."""

    def put(**values):
        mirror = Mirror(tmp_path / "Rex", f"file://{tmp_path}/storage/Rex")
        write_text(mirror.folder / "config.yaml", "steps: 4\n")
        state.write(mirror.folder, RunState(**{"step": 0, "steps": 4, **values}))
        mirror.claim(state.read(mirror.folder))
        mirror.push()
        lost = Mirror(mirror.folder, mirror.url, "lost")
        lost.take_over(state.read(mirror.folder))
        return mirror

    return put


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_a_task_whose_run_has_ended_ends_at_once(stored, status):
    mirror = stored(status=status, step=4)
    assert train_run(mirror.url, "cpu", 1, 1.0) == status
    assert mirror.pull().status == status


@pytest.mark.parametrize("status", ["waiting", "running"])
def test_a_run_that_ends_its_machines_again_and_again_fails(stored, status):
    mirror = stored(status=status, restarts=MAX_RESTARTS)
    assert train_run(mirror.url, "cpu", 1, 1.0) == "failed"
    assert "interrupted 4 times without a new checkpoint" in mirror.pull().reason


def test_a_task_whose_run_was_deleted_ends(stored):
    mirror = stored(status="waiting")
    mirror.delete()
    assert train_run(mirror.url, "cpu", 1, 1.0) == "stopped"


def test_a_task_needs_little_memory_beside_its_run():
    """It used to import torch: more than 200 MB as long as the run trained."""
    code = "import sys, training.cluster.task; print([name for name in ('torch', 'PIL') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(("events", "after"), [([200], 62), ([200, 250], 102)])
def test_a_process_hangs_after_a_silence_that_is_long_for_this_run(stored, monkeypatch, events, after):
    """Its start, which may include a download, says nothing about later silences."""
    mirror, now = stored(status="running"), 0.0

    def sleep(seconds):
        nonlocal now
        now += seconds
        if now in events:
            append_line(mirror.folder / "events.jsonl", "{}")

    monkeypatch.setattr(task, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    attempt = Attempt(Mirror(mirror.folder, mirror.url, "lost"), "cpu", 1, silence=60.0)
    with pytest.raises(AttemptError, match=f"no event for {after} s"):
        attempt._follow(SimpleNamespace(poll=lambda: None))
