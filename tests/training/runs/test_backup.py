"""Backups of an output folder: everything comes back elsewhere, and a damaged or foreign archive restores nothing."""

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from conftest import StopAfter

from app.cli import main
from hra_diffusion.errors import UserError
from training.loop import train
from training.runs import backup
from training.runs.queue import Queue

UNNEEDED = (
    ".queue/index.sqlite3", ".gradio/upload.png", ".cluster/Rex/manifest.json", "Rex/.state.json.1-1.tmp.json",
)  # fmt: skip


@pytest.fixture
def output(tmp_path):
    """An output folder with files of all kinds."""
    files = {
        "Rex/adapter.safetensors": b"weights",
        "Rex/events.jsonl": b"{}\n",
        "photos/Rex/1.png": b"photo",
        ".salt": b"s",
    }
    for name, content in {**files, **dict.fromkeys((".salt", *UNNEEDED), b"x")}.items():
        path = tmp_path / "outputs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "outputs" / ".salt").chmod(0o600)
    return tmp_path / "outputs"


@pytest.fixture
def archive(output, tmp_path):
    backup.write(output, tmp_path / "backup.tar")
    return tmp_path / "backup.tar"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_restored_but_what_is_made_again(output, archive, tmp_path):
    (tmp_path / "new").mkdir()
    assert backup.restore(archive, tmp_path / "new").files == 4
    for name in UNNEEDED:
        (output / name).unlink()
    before, after = (
        {p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (output, tmp_path / "new")
    )
    assert before == after
    assert (tmp_path / "new" / ".salt").stat().st_mode & 0o077 == 0, "a secret stays private"


def test_linked_folders_are_backed_up_and_loops_end(output, tmp_path):
    shutil.move(output / "Rex", tmp_path / "other disk")
    (output / "Rex").symlink_to(tmp_path / "other disk")
    (output / "photos" / "loop").symlink_to(output)
    backup.write(output, tmp_path / "backup.tar")
    backup.restore(tmp_path / "backup.tar", tmp_path / "new")
    assert (tmp_path / "new" / "Rex" / "adapter.safetensors").read_bytes() == b"weights"


def test_a_file_that_grows_meanwhile_is_backed_up_as_it_was(output, tmp_path, monkeypatch):
    add = tarfile.TarFile.addfile

    def grow(tar, entry, file):
        with (output / "Rex" / "events.jsonl").open("ab") as log:
            log.write(b"{}\n")
        add(tar, entry, file)

    monkeypatch.setattr(tarfile.TarFile, "addfile", grow)
    backup.write(output, tmp_path / "backup.tar")
    backup.restore(tmp_path / "backup.tar", tmp_path / "new")
    assert set((tmp_path / "new" / "Rex" / "events.jsonl").read_bytes().split()) == {b"{}"}


@pytest.mark.skipif(os.name == "nt", reason="permissions are those of POSIX")
@pytest.mark.parametrize(("closed", "mode", "named"), [
    ("Rex", 0, "Rex"), ("Rex", 0o444, "Rex/adapter.safetensors"), ("photos/Rex/1.png", 0, "photos/Rex/1.png"),
])  # fmt: skip
def test_nothing_that_can_not_be_read_is_left_out(output, tmp_path, monkeypatch, closed, mode, named):
    monkeypatch.chdir(tmp_path)  # so that the folders above, of root alone, do not matter
    for path, own in ((tmp_path, 0o777), (output / ".salt", 0o644), (output / closed, mode)):
        path.chmod(own)
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may read everything
    try:
        with pytest.raises(UserError, match=rf"^outputs/{named} can't be read \(Permission denied\); nothing was"):
            backup.write(Path("outputs"), Path("backup.tar"))
    finally:
        os.seteuid(user)
        (output / closed).chmod(0o755)
    assert not list(tmp_path.glob("*.tar"))


def test_a_link_to_a_disk_that_is_gone_is_named(output, tmp_path):
    (output / "Max").symlink_to(tmp_path / "other disk")
    with pytest.raises(UserError, match=r"Max can't be read \(No such file"):
        backup.write(output, tmp_path / "backup.tar")


def damage(data):
    index = data.index(b"weights")
    return data[:index] + b"wEights" + data[index + 7 :]


@pytest.mark.parametrize(
    "change", [damage, lambda data: data[:2000], lambda data: b"not an archive" * 100, lambda data: b""]
)
def test_a_damaged_archive_restores_nothing(archive, tmp_path, change):
    archive.write_bytes(change(archive.read_bytes()))
    with pytest.raises(UserError, match=r"damaged|incomplete"):
        backup.restore(archive, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def entry(name, **fields):
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize("bad", [
    entry("../outside"), entry("/outside"), entry("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    entry("device", type=tarfile.CHRTYPE), entry("unlisted"),
])  # fmt: skip
def test_an_archive_of_another_program_restores_nothing(archive, tmp_path, bad):
    with tarfile.open(archive, "a") as tar:
        tar.addfile(bad, io.BytesIO(b""))
    with pytest.raises(UserError):
        backup.restore(archive, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == [] and not (tmp_path / "outside").exists()


def test_nothing_is_overwritten(output, archive, tmp_path):
    with pytest.raises(UserError, match="not empty"):
        backup.restore(archive, output)
    with pytest.raises(UserError, match="exists already"):
        backup.write(output, archive)
    with pytest.raises(UserError, match="lies in"):
        backup.write(output, output / "backup.tar")
    with pytest.raises(UserError, match="no folder"):
        backup.write(tmp_path / "missing", tmp_path / "other.tar")


def test_a_stopped_run_goes_on_where_it_is_restored(tmp_path, settings, photos, capsys):
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(photos, old / "photos" / "subject")
    config = settings(photos=[str(old / "photos" / "subject")], name="subject")
    with pytest.raises(KeyboardInterrupt):
        train(config, old, [StopAfter(2)])
    assert main(["backup", str(tmp_path / "all.tar"), "--output", str(old), "--quiet"]) == 0
    shutil.rmtree(old)
    assert main(["restore", str(tmp_path / "all.tar"), "--output", str(new)]) == 0
    assert "1 runs" in capsys.readouterr().out
    assert Queue(new).job(config.name).status == "stopped"
    train(config, new, resume=True)
    assert Queue(new).job(config.name).status == "finished"
