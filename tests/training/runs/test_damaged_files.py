"""Damaged, truncated and missing files of runs and of the queue."""

import contextlib
import os
import shutil
import sqlite3

import pytest
import torch
from conftest import weights
from damage import DAMAGED, GARBAGE, damage

from hra_diffusion.errors import Note, UserError
from training import config as configs
from training.loop import train
from training.runs import calibration, progress
from training.runs.calibration import Calibration
from training.runs.queue import Queue
from training.runs.run_folder import Run


@pytest.fixture
def stopped_copy(stopped_run, tmp_path):
    """The stopped run in a copy of its folder."""
    config, folder, uninterrupted = stopped_run
    return config, Run(shutil.copytree(folder, tmp_path / "out" / "Rex")), uninterrupted


@pytest.mark.filterwarnings("ignore::hra_diffusion.errors.Note")
@pytest.mark.parametrize("how", DAMAGED)
def test_resume_with_damaged_state_and_log(stopped_copy, tmp_path, how):
    config, run, uninterrupted = stopped_copy
    damage(run.folder / "state.json", DAMAGED[how])
    damage(run.folder / "events.jsonl", DAMAGED[how])
    (job,) = Queue(tmp_path / "out").jobs()
    assert (job.status, job.step, job.steps) == ("died", 3, 5), "read from its checkpoints and configuration"
    assert torch.equal(weights(train(config, tmp_path / "out", resume=True)), uninterrupted)
    assert list(progress.read(run).losses) == [4, 5] and run.finished
    damage(run.folder / "state.json", DAMAGED[how])
    assert run.finished and Queue(tmp_path / "out").job("Rex").status == "finished"


@pytest.mark.parametrize("file", ["training", "adapter"])
def test_resume_with_a_damaged_checkpoint_file(stopped_copy, tmp_path, file):
    config, run, uninterrupted = stopped_copy
    broken = run.checkpoint_folder(3) / f"{file}.safetensors"
    broken.write_bytes(broken.read_bytes()[:300])
    assert torch.equal(weights(train(config, tmp_path / "out", resume=True)), uninterrupted)
    assert any("can't be read" in notice for notice in progress.read(run).notices)


ODD_EVENTS = (b'{"event": "step"}', b'{"event": "sample", "step": 1, "pictures": 3}', b'{"event": ["step"]}',
              b'{"event": "step", "step": [], "total": 1, "loss": "x", "learning_rate": 1, "seconds": 1}',
              b'{"event": "notice", "message": 3}', b'{"event": "notice", "message": "x", "time": 1e300}')  # fmt: skip


def test_invalid_log_lines_are_skipped(tmp_path):
    run = Run(tmp_path)
    odd = [*ODD_EVENTS, *(content for content in GARBAGE.values() if isinstance(content, bytes))]
    lines = b"\n".join([*odd, b'{"event": "notice", "message": "here"}', b'{"event": "of a later version"}', b""])
    (tmp_path / "events.jsonl").write_bytes(lines)
    with pytest.warns(Note, match="damaged line") as said:
        assert progress.read(run).notices == ["here"]
    assert len(said) == 1


@pytest.mark.parametrize("how", ["folder", "other types"])
def test_resume_with_damaged_photo_records_and_log(stopped_copy, tmp_path, how):
    config, run, uninterrupted = stopped_copy
    for file in ("photos.json", "events.jsonl"):
        damage(run.folder / file, GARBAGE[how])
    with pytest.warns(Note, match=r"photos\.json is damaged .* set aside"):
        assert torch.equal(weights(train(config, tmp_path / "out", resume=True)), uninterrupted)
    records = run.photo_records
    assert records is not None and len(records) == 3 and list(progress.read(run).losses) == [4, 5]


def test_damaged_photo_records_read_as_none(tmp_path):
    run = Run(tmp_path)
    for content in GARBAGE.values():
        damage(tmp_path / "photos.json", content)
        with pytest.warns(Note, match="set aside"):
            assert run.photo_records is None


def test_a_damaged_queue_is_rebuilt_from_the_runs(settings, tmp_path):
    queue = Queue(tmp_path)
    for name in ("b", "a", "c"):
        queue.add(settings(name=name))
    queue.move("a", 0)
    Run(tmp_path / "c").write_state("stopped", 0, 4)
    for content in (b"", b"SQLite format 3", b"\0" * 5000, queue.index.path.read_bytes()[:1000]):
        queue.index.delete()
        queue.index.path.write_bytes(content)
        assert queue.waiting() == ["a", "b"]
        assert [job.status for job in queue.jobs()] == ["waiting", "waiting", "stopped"]


def test_an_index_damaged_while_it_is_open_is_made_anew(settings, tmp_path):
    queue = Queue(tmp_path)
    queue.add(settings())
    assert queue.waiting() == ["Rex"]
    with sqlite3.connect(queue.index.path) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    queue.index.path.write_bytes(b"\0" * queue.index.path.stat().st_size)
    with contextlib.suppress(UserError):
        queue.waiting()
    assert queue.waiting() == ["Rex"]


def test_runs_of_an_earlier_version_keep_waiting(settings, tmp_path):
    for number, name in enumerate(("b", "a")):
        configs.write(settings(name=name), tmp_path / name / "config.yaml")
        (tmp_path / name / "state.json").write_text('{"status": "waiting", "step": 0, "steps": 4}')
        os.utime(tmp_path / name / "state.json", (number + 1, number + 1))
        os.utime(tmp_path / name / "config.yaml", (1, 1))
    assert Queue(tmp_path).waiting() == ["b", "a"]


def test_a_damaged_calibration_is_set_aside(settings, tmp_path):
    config, file = settings(), tmp_path / ".queue" / "calibrations" / f"{calibration.cost_key(settings())}.json"
    file.parent.mkdir(parents=True)
    for content in (*GARBAGE.values(), b'{"of_another_version": 1}'):
        damage(file, content)
        with pytest.warns(Note, match="set aside"):
            assert calibration.load(tmp_path, config) is None
    calibration.save(Calibration(step=1.0), file)
    assert calibration.load(tmp_path, config) == Calibration(step=1.0)
