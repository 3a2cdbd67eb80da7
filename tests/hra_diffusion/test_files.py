"""Atomic file operations, validated names, and incomplete files."""

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
