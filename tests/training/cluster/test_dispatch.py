"""The worker of a cluster, without one."""

import errno
import shutil

import pytest

from hra_diffusion import trash
from hra_diffusion.files import FileError, sha256, write_text
from training import config as configs
from training.cluster.storage import Mirror
from training.cluster.task import train_run
from training.runs import backup, deletion, leases, state
from training.runs.queue import Queue
from training.runs.run_folder import Run, RunError
from training.runs.state import RunState

ray = pytest.importorskip("ray")

from training.cluster import dispatch  # noqa: E402


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "outputs")


@pytest.fixture
def run(queue, settings, tmp_path):
    return queue.add(settings(jobs="ray", storage=f"file://{tmp_path}/storage"))


def begin(mirror, tmp_path):
    """A task that has begun to train a run, on another machine."""
    there = Mirror(tmp_path / "there" / "Rex", mirror.url, "1")
    there.pull()
    there.take_over(RunState(status="waiting", step=0, steps=4))
    return there


def write_checkpoint(folder, step):
    write_text(folder / "checkpoints" / f"{step:06d}" / "adapter.safetensors", f"weights of step {step}")


def progress(there, step, status="running"):
    """Write a checkpoint as the task does, or the finished adapter."""
    write_checkpoint(there.folder, step)
    if status == "finished":
        write_text(there.folder / "Rex.safetensors", "the adapter")
    state.write(there.folder, RunState(status=status, step=step, steps=4))
    there.push()


def full_disk(*_):
    raise OSError(errno.ENOSPC, "")


def test_what_did_not_arrive_here_is_brought_before_a_run_goes_on(queue, run, tmp_path, monkeypatch):
    """Resuming used to delete it from the storage."""
    _, mirror = dispatch.store(run)
    progress(begin(mirror, tmp_path), 4, "finished")
    run.fail("the disk is full")
    queue.resume("Rex")
    configs.write(run.config.model_copy(update={"log_every": 7}), run.folder / "config.yaml")
    with monkeypatch.context() as patch, pytest.raises(FileError, match="the disk is full"):
        patch.setattr(Mirror, "_download_file", full_disk)
        dispatch.store(run)
    assert dispatch.store(run)[0].log_every == run.config.log_every == 7, "settings changed since stay"
    assert run.adapter.read_text() == "the adapter" and [path.name for path in run.checkpoints()] == ["000004"]
    assert run.state.status == "waiting" and run.state.step == 4
    assert "Rex.safetensors" in mirror.manifest().files


def test_a_run_that_is_trained_here_instead_is_left_alone(run, tmp_path, monkeypatch):
    """The worker used to delete its new checkpoints here, and the cluster trained it once more."""
    _, mirror = dispatch.store(run)
    job, cancelled = dispatch.Submitted(run, mirror, "task", temporary=False), []
    monkeypatch.setattr(ray, "wait", lambda tasks, timeout: ([], tasks))
    monkeypatch.setattr(ray, "cancel", cancelled.append)
    with run.locked():
        write_checkpoint(run.folder, 2)
        assert dispatch.follow(job) and cancelled == ["task"]
    assert len(run.checkpoints()) == 1
    assert train_run(mirror.url, "cpu", 1, 1.0) == "stopped", "if the task begins nevertheless"


def test_a_run_belongs_to_its_task_once_that_has_begun(run, tmp_path, monkeypatch):
    _, mirror = dispatch.store(run)
    job = dispatch.Submitted(run, mirror, "task", temporary=False)
    monkeypatch.setattr(ray, "wait", lambda tasks, timeout: ([], tasks))
    assert not dispatch.follow(job) and not leases.training(run.index)
    progress(begin(mirror, tmp_path), 2)
    assert not dispatch.follow(job) and run.state.step == 2 and len(run.checkpoints()) == 1
    with pytest.raises(RunError, match="is being trained by another process"), run.locked():
        pass
    leases.release(run.index, job.lease)


def test_a_run_goes_on_in_a_restored_output_folder(queue, run, settings, tmp_path):
    """Its place in the storage used to belong to the old machine and folder."""
    own = queue.add(settings(name="own", jobs="ray"))
    dispatch.store(own)
    progress(begin(dispatch.store(run)[1], tmp_path), 2)
    backup.write(queue.output, tmp_path / "backup.tar")
    shutil.rmtree(queue.output)
    backup.restore(tmp_path / "backup.tar", tmp_path / "new")
    for name in ("Rex", "own"):
        restored = Run(tmp_path / "new" / name)
        config, mirror = dispatch.store(restored)
        assert all(photo.is_file() and photo.is_relative_to(restored.folder) for photo in config.photos)
        assert "config.yaml" in mirror.manifest().files
    assert [path.name for path in Run(tmp_path / "new" / "Rex").checkpoints()] == ["000002"]


def test_photos_of_a_run_of_the_cluster_are_deleted_with_it(queue, settings, photos):
    """In the output folder, where the page put them, and in its own storage; those of another run stay."""
    for name in ("Rex", "Max"):
        shutil.copytree(photos, queue.output / "photos" / name)
        dispatch.store(queue.add(settings(name=name, jobs="ray", photos=[str(queue.output / "photos" / name)])))
    assert deletion.photo_folders(queue.output / "Rex", queue.output) == {queue.output / "photos" / "Rex"}
    key = trash.move_to_trash(queue.output / "Rex", queue.output)
    assert {sha256(photo) for photo in photos.glob("*.jpg")} <= deletion.delete_for_good(key, queue.output)
    for place in ("photos", ".cluster"):
        assert [path.name for path in (queue.output / place).iterdir()] == ["Max"]
