"""Deleted adapters: restored, kept for 30 days, then removed."""

import time

import pytest
from damage import damage

from hra_diffusion import library, trash
from hra_diffusion.errors import Note


def delete_expired(folder, **options):
    for key in trash.expired(folder, **options):
        trash.delete(key, folder)


def test_items_are_restored_or_expire(adapter, tmp_path):
    key = trash.move_to_trash(adapter, tmp_path)
    assert not adapter.exists() and trash.keys(tmp_path) == [key] and not list(library.list_adapters([tmp_path]))
    trash.restore(key, tmp_path)
    assert adapter.is_file() and (adapter.parent / "samples").is_dir() and trash.keys(tmp_path) == []
    key = trash.move_to_trash(adapter, tmp_path)
    delete_expired(tmp_path)
    assert trash.keys(tmp_path) == [key], "a new item is kept"
    old = f"{int(time.time()) - 31 * 86400}-Rex"
    for path in (tmp_path / ".bin" / key, tmp_path / ".bin" / f"{key}.from"):
        path.rename(path.with_name(path.name.replace(key, old)))
    delete_expired(tmp_path)
    assert trash.keys(tmp_path) == []
    with pytest.raises(ValueError, match="not in the bin"):
        trash.restore(old, tmp_path)


def test_restoring_does_not_overwrite(adapter, tmp_path):
    key = trash.move_to_trash(adapter, tmp_path)
    (tmp_path / "Rex").mkdir()
    with pytest.raises(ValueError, match="rename that adapter or run first"):
        trash.restore(key, tmp_path)
    with pytest.raises(ValueError, match="not in the bin"):
        trash.restore("../Rex", tmp_path)


@pytest.mark.parametrize("note", ["", None, "../../elsewhere"])
def test_restoring_without_a_valid_note_of_the_origin(adapter, tmp_path, note):
    key = trash.move_to_trash(adapter, tmp_path)
    (tmp_path / ".bin" / "other-file").write_text("x")
    origin = tmp_path / ".bin" / f"{key}.from"
    origin.unlink() if note is None else origin.write_text(note)
    assert trash.keys(tmp_path) == [key]
    delete_expired(tmp_path, days=1)
    assert trash.restore(key, tmp_path) == tmp_path / "Rex" and adapter.is_file()
    assert trash.keys(tmp_path) == []


@pytest.mark.parametrize("note", [b"a\0b", b"\xff\xfe", b"a/" + b"b" * 300, "folder"])
def test_a_damaged_note_of_the_origin_is_set_aside(adapter, tmp_path, note):
    key = trash.move_to_trash(adapter, tmp_path)
    damage(tmp_path / ".bin" / f"{key}.from", note)
    with pytest.warns(Note, match="set aside"):
        assert trash.restore(key, tmp_path) == tmp_path / "Rex" and adapter.is_file()
    assert trash.keys(tmp_path) == []
