"""Deleted adapters: restored, kept for 30 days, then removed."""

import time

import pytest

from hra_diffusion import library, trash


def test_the_bin_gives_back_and_forgets_after_its_days(adapter, tmp_path):
    key = trash.move_to_trash(adapter, tmp_path)
    assert not adapter.exists() and trash.keys(tmp_path) == [key] and not list(library.list_adapters([tmp_path]))
    trash.restore(key, tmp_path)
    assert adapter.is_file() and (adapter.parent / "samples").is_dir() and trash.keys(tmp_path) == []
    key = trash.move_to_trash(adapter, tmp_path)
    trash.empty(tmp_path)
    assert trash.keys(tmp_path) == [key], "not yet"
    old = f"{int(time.time()) - 31 * 86400}-Rex"
    for place in (tmp_path / ".bin" / key, tmp_path / ".bin" / f"{key}.from"):
        place.rename(place.with_name(place.name.replace(key, old)))
    trash.empty(tmp_path)
    assert trash.keys(tmp_path) == []
    with pytest.raises(ValueError, match="not in the bin"):
        trash.restore(old, tmp_path)


def test_a_restore_does_not_overwrite(adapter, tmp_path):
    key = trash.move_to_trash(adapter, tmp_path)
    (tmp_path / "Rex").mkdir()
    with pytest.raises(ValueError, match="rename that first"):
        trash.restore(key, tmp_path)
    with pytest.raises(ValueError, match="not in the bin"):
        trash.restore("../Rex", tmp_path)


@pytest.mark.parametrize("kept", ["", None, "../../elsewhere"])
def test_what_is_in_the_bin_comes_back_though_its_note_is_damaged(tmp_path, kept):
    path = saved_adapter(tmp_path)
    key = trash.move_to_trash(path, tmp_path)
    (tmp_path / ".bin" / "notes-of-mine").write_text("x")
    origin = tmp_path / ".bin" / f"{key}.from"
    origin.unlink() if kept is None else origin.write_text(kept)
    assert trash.keys(tmp_path) == [key]
    trash.empty(tmp_path, days=1)
    assert trash.restore(key, tmp_path) == tmp_path / "Rex" and path.is_file()
    assert trash.keys(tmp_path) == []
