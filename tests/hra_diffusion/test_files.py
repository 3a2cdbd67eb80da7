"""Atomic file operations, validated names, and incomplete files."""

import os
import threading
import time

import pytest
import torch
from windows import windows  # noqa: F401 (a fixture)

from hra_diffusion import files
from hra_diffusion.files import FileError, append_line, move, read_json, save_tensors, write_text


def test_writes_by_the_rules_of_windows(windows, tmp_path):  # noqa: F811
    write_text(tmp_path / "a.json", "1")
    write_text(tmp_path / "a.json", "2")
    save_tensors(tmp_path / "t.safetensors", {"x": torch.ones(2)})
    with files.atomic_path(tmp_path / "folder") as temporary:
        write_text(temporary / "a.txt", "α\nβ")
    with files.atomic_path(tmp_path / "folder") as temporary:
        write_text(temporary / "b.txt", "α\nβ")
    assert (tmp_path / "folder" / "b.txt").read_bytes() == "α\nβ".encode()
    append_line(tmp_path / "log", "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "folder", "log", "t.safetensors"]


def test_replacing_a_file_waits_for_its_reader(windows, tmp_path):  # noqa: F811
    write_text(tmp_path / "state.json", "1")
    reader = (tmp_path / "state.json").open()

    def close_once_refused():
        while not windows:
            time.sleep(0.005)
        reader.close()

    threading.Thread(target=close_once_refused, daemon=True).start()
    write_text(tmp_path / "state.json", "2")
    assert (tmp_path / "state.json").read_text() == "2"


def test_a_file_open_in_another_program_is_reported(windows, tmp_path):  # noqa: F811
    write_text(tmp_path / "grid.png", "1")
    with (tmp_path / "grid.png").open(), pytest.raises(FileError, match=r"grid\.png .*open in another program"):
        write_text(tmp_path / "grid.png", "2")
    assert (tmp_path / "grid.png").read_text() == "1" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_replaced_is_kept(windows, tmp_path):  # noqa: F811
    with files.atomic_path(tmp_path / "folder") as temporary:
        write_text(temporary / "a.txt", "1")
    with pytest.raises(FileError), files.atomic_path(tmp_path / "folder") as temporary:
        write_text(temporary / "a.txt", "2")
        opened = (temporary / "a.txt").open()  # as a virus scanner opens every new file
    opened.close()
    assert (tmp_path / "folder" / "a.txt").read_text() == "1"


def test_other_systems_do_not_retry(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "replace", refuse)
    start = time.monotonic()
    with pytest.raises(FileError, match="permission denied"):
        move(tmp_path / "a", tmp_path / "b")
    assert time.monotonic() - start < files.BUSY_SECONDS / 2


@pytest.mark.parametrize("content", [b"", b'{"a": [1', b"\0\0\0\0", b"\xff\xfe", None])
def test_incomplete_empty_or_missing_json_reads_as_none(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") is None
    write_text(tmp_path / "a.json", '{"a": "é"}')
    assert read_json(tmp_path / "a.json") == {"a": "é"}


def test_a_line_is_not_appended_to_an_incomplete_one(tmp_path):
    (tmp_path / "log").write_bytes(b'one\n{"to')
    append_line(tmp_path / "log", "two")
    append_line(tmp_path / "log", "três")
    assert (tmp_path / "log").read_bytes() == 'one\n{"to\ntwo\ntrês\n'.encode()


def leave(path, folder=False):
    """Leave the temporary file or folder that ``atomic_path`` writes, as if its process had been killed."""
    temporary = files._temporary_path(path)
    if folder:
        temporary.mkdir()
    (temporary / "a.txt" if folder else temporary).write_text("1")
    return temporary


def age(path, seconds=4000):
    for file in [path, *path.rglob("*")]:
        os.utime(file, (time.time() - seconds,) * 2)


def test_leftover_temporary_files_are_swept_and_no_others(tmp_path):
    (tmp_path / "Rex").mkdir()
    names = ["state.json", "Rex/Rex.safetensors", "Rex/checkpoint", "Rex/pictures.zip"]
    left = [leave(tmp_path / name, name.endswith("checkpoint")) for name in names]
    unlike = (".tmp", "a.tmp", ".a.1-2.txt", ".a.tmp", "Rex/.lock", "a.1-2.tmp", ".1-2.tmp")
    others = [tmp_path / name for name in unlike]
    for file in others:
        file.write_text("x")
    for path in [*others, *left[1:]]:
        age(path)
    files.sweep(tmp_path)
    assert all(file.exists() for file in others) and left[0].exists(), "it may still be being written"
    assert not any(temporary.exists() for temporary in left[1:])


def test_a_folder_that_was_moved_aside_is_moved_back(tmp_path, monkeypatch):
    """The process is killed between the two moves that replace a folder."""
    with files.atomic_path(tmp_path / "000050") as temporary:
        write_text(temporary / "a.txt", "1")
    original, moves = files.move, []

    def killed(source, target):
        if moves:
            raise KeyboardInterrupt
        moves.append(source)
        original(source, target)

    monkeypatch.setattr(files, "move", killed)
    with pytest.raises(KeyboardInterrupt), files.atomic_path(tmp_path / "000050") as temporary:
        temporary.mkdir()
    monkeypatch.undo()
    (outdated,) = tmp_path.iterdir()
    age(outdated)
    files.sweep(tmp_path)
    assert (tmp_path / "000050" / "a.txt").read_text() == "1" and len(list(tmp_path.iterdir())) == 1
