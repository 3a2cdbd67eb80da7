"""Runs' folders in storage: file:// and an S3 server."""

import json
import shutil

import pytest
from conftest import save_photos

from hra_diffusion.files import append_line, write_text
from training import config as configs
from training.cluster import inputs
from training.cluster.storage import DamagedError, Mirror, StorageError, SupersededError, place_of
from training.data.photo_files import find_photos, read_captions
from training.runs import state
from training.runs.run_folder import Run
from training.runs.state import RunState

WAITING = RunState(status="waiting", step=0, steps=4)


@pytest.fixture(scope="module")
def s3():
    """The address of a local S3 server with a bucket."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    pytest.importorskip("s3fs")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        import fsspec

        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket/runs"
    server.stop()


@pytest.fixture(params=["file", "s3"])
def storage(request, tmp_path):
    return f"file://{tmp_path}/storage" if request.param == "file" else request.getfixturevalue("s3")


@pytest.fixture
def mirrors(storage, tmp_path, settings):
    """A run in the storage, as the machine of the queue and a machine of the cluster see it."""
    place = f"{storage}/{tmp_path.name}/Rex"
    here, there = (Mirror(tmp_path / side / "Rex", place, attempt) for side, attempt in (("here", ""), ("there", "1")))
    configs.write(settings(photos=[str(here.folder / "inputs" / "00" / "1.jpg")]), here.folder / "config.yaml")
    write_text(here.folder / "inputs" / "00" / "1.jpg", "a photo")
    state.write(here.folder, WAITING)
    here.claim(WAITING)
    here.push()
    there.pull()
    there.take_over(WAITING)
    state.write(there.folder, WAITING)
    return here, there


def write_checkpoint(mirror, step, text="weights"):
    for name in ("adapter", "training"):
        write_text(mirror.folder / "checkpoints" / f"{step:06d}" / f"{name}.safetensors", f"{name} {step} {text}")


def names(mirror):
    return sorted(path.relative_to(mirror.folder).as_posix() for path in mirror.folder.rglob("*.safetensors"))


def test_a_run_and_its_paths_arrive_on_another_machine_and_come_back(mirrors):
    here, there = mirrors
    (photo,) = Run(there.folder).config.photos
    assert photo == there.folder / "inputs" / "00" / "1.jpg" and photo.read_text() == "a photo"
    write_checkpoint(there, 2)
    append_line(there.folder / "events.jsonl", f'{{"event": "checkpoint", "adapter": "{there.folder}/x"}}')
    state.write(there.folder, RunState(status="running", step=2, steps=4))
    there.push()
    found = here.pull(strict=True)
    assert found and (found.status, found.step) == ("running", 2)
    assert names(here) == ["checkpoints/000002/adapter.safetensors", "checkpoints/000002/training.safetensors"]
    assert (here.folder / "events.jsonl").read_text().count(f'"{here.folder}/x"') == 1
    assert Run(here.folder).config.photos == (here.folder / "inputs" / "00" / "1.jpg",)
    assert Run(here.folder).state == WAITING, "the reader decides what becomes of the state"


def test_a_checkpoint_is_there_once_it_is_whole(mirrors, monkeypatch):
    here, there = mirrors
    write_checkpoint(there, 2)
    with monkeypatch.context() as patch:
        patch.setattr(there._system, "put_file", interrupted(there._system.put_file))
        with pytest.raises(ConnectionError):
            there.push()
    here.pull(strict=True)
    assert names(here) == []
    there.push()
    here.pull(strict=True)
    assert len(names(here)) == 2


def interrupted(put_file):
    """Fail at the second file."""
    calls = []

    def put(*given, **more):
        calls.append(given)
        if len(calls) == 2:
            raise ConnectionError
        return put_file(*given, **more)

    return put


def test_pruned_states_go_and_damaged_files_are_left_out(mirrors):
    here, there = mirrors
    write_checkpoint(there, 2), write_checkpoint(there, 4)
    there.push(), here.pull()
    (there.folder / "checkpoints" / "000002" / "training.safetensors").unlink()
    there.push(), here.pull()
    assert names(here) == [f"checkpoints/{name}.safetensors" for name in
                           ("000002/adapter", "000004/adapter", "000004/training")]  # fmt: skip
    write_checkpoint(there, 6)
    there.push()
    there._write("checkpoints/000006/training.safetensors", b"damaged")
    with pytest.raises(DamagedError, match="000006/training"):
        here.pull(strict=True)
    here.pull()
    assert not (here.folder / "checkpoints" / "000006").exists() and len(names(here)) == 3


def test_only_the_latest_attempt_writes(mirrors):
    here, there = mirrors
    again = Mirror(there.folder.parent.parent / "again" / "Rex", there.url, "again")
    again.pull()
    again.take_over(WAITING)
    write_checkpoint(there, 2)
    with pytest.raises(SupersededError):
        there.push()
    here.pull()
    assert names(here) == []


def test_an_attempt_that_is_superseded_while_it_uploads_writes_nothing(mirrors, monkeypatch):
    here, there = mirrors
    again, put_file = Mirror(there.folder, there.url, "again"), there._system.put_file

    def put(*given, **more):
        put_file(*given, **more)
        again.take_over(WAITING)

    write_checkpoint(there, 2)
    monkeypatch.setattr(there._system, "put_file", put)
    with pytest.raises(SupersededError):
        there.push()
    assert here.manifest().attempt == "again" and "checkpoints/000002/adapter.safetensors" not in here.manifest().files


def test_paths_of_runs_with_longer_names_stay(mirrors, settings):
    here, there = mirrors

    def message(side):
        others = (f"{here.folder}{end}" for end in ("-merged", "2/x", "_b", ".old"))
        return "".join(f"{side.folder}: {side.folder}/x, not {other}\n" for other in others)

    base = f"{here.folder} 2"
    configs.write(settings(photos=[str(here.folder)], base=base), here.folder / "config.yaml")
    write_text(here.folder / "process.log", message(here))
    append_line(here.folder / "events.jsonl", json.dumps({"event": "notice", "message": message(here)}))
    here.claim(WAITING), here.push(), there.pull()
    config = Run(there.folder).config
    assert config.base == base and config.photos == (there.folder,)
    assert (there.folder / "process.log").read_text() == message(there)
    assert json.loads((there.folder / "events.jsonl").read_text())["message"] == message(there)


def test_a_log_grows_in_place(mirrors):
    here, there = mirrors
    log, lines, inodes = here.folder / "events.jsonl", ['{"event": "phase"}', '{"event": "step"}'], set()
    for count in (1, 2):
        (there.folder / "events.jsonl").write_text("\n".join([*lines[:count], '{"torn']))
        there.push(), here.pull()
        assert log.read_text().splitlines() == lines[:count]
        inodes.add(log.stat().st_ino)
    assert len(inodes) == 1


def test_requests_are_taken_once(mirrors):
    here, there = mirrors
    assert not there.take("stop")
    here.send("stop")
    assert there.take("stop") and not there.take("stop")


def test_the_place_of_another_output_folder_is_refused(mirrors, tmp_path):
    here, _ = mirrors
    with pytest.raises(StorageError, match="another output folder; choose another --name or --storage, or delete it"):
        Mirror(tmp_path / "other" / "Rex", here.url).claim(WAITING)


def test_a_later_run_of_the_same_name_replaces_one_that_was_deleted(mirrors):
    here, there = mirrors
    write_checkpoint(there, 2)
    there.push()
    shutil.rmtree(here.folder)
    write_text(here.folder / "config.yaml", "steps: 4\n")
    assert here.claim(WAITING) is None, "nothing of the other run is brought"
    here.push()
    assert set(here.manifest().files) == {"config.yaml"}


def test_a_manifest_cannot_name_files_outside_the_folder(mirrors):
    here, there = mirrors
    for key in ("../x", "/etc/x", "state.json", ".hidden"):
        there._write_manifest(there._stored().model_copy(update={"files": {key: "0" * 64}}))
        with pytest.raises(StorageError, match="no file of a run"):
            here.pull()


def test_a_url_without_a_file_system_is_an_error(tmp_path):
    with pytest.raises(StorageError, match="nowhere://x can't be used"):
        Mirror(tmp_path / "Rex", "nowhere://x")
    assert place_of(None, tmp_path, "Rex") == f"file://{tmp_path}/.cluster/Rex"


def test_inputs_are_copied_into_the_run(settings, photos, tmp_path):
    """Photos in the same order, with captions, masks and crops, from two folders with equal names."""
    (other := tmp_path / "other").mkdir()
    save_photos(other, 2)
    shutil.copyfile(other / "0.jpg", other / "0.mask.png")
    box = {str(other / "1.jpg"): (1, 2, 90, 90)}
    concepts = [{"photos": [str(photos)], "class_noun": "dog", "trigger": "sks"},
                {"photos": [str(other)], "class_noun": "cat", "trigger": "qwe"}]  # fmt: skip
    values = settings().model_dump(mode="json", exclude={"photos", "class_noun", "trigger"})
    config = configs.parse(values | {"concepts": concepts, "boxes": box})
    run = Run(tmp_path / "out" / "Rex")
    configs.write(config, run.folder / "config.yaml")
    copied = inputs.gather(run)
    assert copied == run.config and inputs.gather(run) == copied
    before, after = find_photos(config.photos), find_photos(copied.photos)
    assert [path.read_bytes() for path in after] == [path.read_bytes() for path in before]
    assert list(read_captions(copied.photos).values()) == list(read_captions(config.photos).values())
    assert [len(concept.photos) for concept in copied.concepts] == [3, 2]
    (boxed,) = copied.boxes
    assert boxed.read_bytes() == (other / "1.jpg").read_bytes() and len(list(run.folder.rglob("*.mask.png"))) == 1
    assert inputs.originals(run.folder) == [photos, other]


def test_copied_inputs_are_found_after_the_run_was_moved(settings, photos, tmp_path):
    write_text(tmp_path / "init.safetensors", "an adapter")
    run, moved = (Run(tmp_path / output / "Rex") for output in ("before", "after"))
    box = {str(photos / "1.jpg"): (1, 2, 90, 90)}
    configs.write(settings(boxes=box, init_adapter=str(tmp_path / "init.safetensors")), run.folder / "config.yaml")
    before = inputs.gather(run)
    moved.folder.parent.mkdir()
    run.folder.rename(moved.folder)
    after = inputs.gather(moved)
    assert after == moved.config and after.init_adapter.read_text() == "an adapter"
    for one, other in zip((*before.photos, *before.boxes), (*after.photos, *after.boxes), strict=True):
        assert other.is_file() and other.relative_to(moved.folder) == one.relative_to(run.folder)
    assert inputs.originals(moved.folder) == [photos]
