"""The program's own files, damaged in the ways of tests/damage.py: set aside, said once, and the rest goes on."""

import warnings
from dataclasses import dataclass

import pytest
from damage import GARBAGE, damage
from pydantic import BaseModel

from hra_diffusion import records
from hra_diffusion.errors import Note


class State(BaseModel):
    status: str
    step: int


@dataclass(frozen=True)
class Vote:
    winner: str
    at: int | None = None


@pytest.mark.parametrize("kind", [State, list[Vote], dict[str, int]])
@pytest.mark.parametrize("how", GARBAGE)
def test_a_damaged_file_is_set_aside_and_said_once(tmp_path, how, kind):
    path = tmp_path / "state.json"
    damage(path, GARBAGE[how])
    with pytest.warns(Note, match=r"state\.json is damaged \(.{1,400}\); it was set aside as state\.json\.damaged-1"):
        assert records.read(path, kind, None) is None
    with warnings.catch_warnings(action="error"):
        assert records.read(path, kind, None) is None, "now it is only missing"
    aside = tmp_path / "state.json.damaged-1"
    assert aside.is_dir() if GARBAGE[how] == "folder" else aside.read_bytes() == GARBAGE[how]
    damage(path, b"again")
    with pytest.warns(Note, match="damaged-2"):
        records.read(path, kind, None)


@pytest.mark.parametrize(
    "content", [b'{"status": "running"}', b'{"status": 3, "step": 3}', b'{"status": "x", "step": []}']
)
def test_missing_and_wrong_fields_are_named(tmp_path, content):
    damage(tmp_path / "state.json", content)
    with pytest.warns(Note, match=r"damaged \((status|step): "):
        assert records.read(tmp_path / "state.json", State, "default") == "default"


def test_a_sound_and_a_missing_file_are_read_without_a_word(tmp_path):
    (tmp_path / "state.json").write_text('{"status": "läuft", "step": 3, "of_a_later_version": 1}', encoding="utf-8")
    with warnings.catch_warnings(action="error"):
        assert records.read(tmp_path / "state.json", State, None) == State(status="läuft", step=3)
        assert records.read(tmp_path / "none" / "state.json", State, 3) == 3
        assert records.read(tmp_path / "state.json" / "state.json", State, 3) == 3


def test_a_damaged_file_in_a_folder_that_is_read_only_is_said_once(tmp_path, monkeypatch):
    damage(tmp_path / "state.json", b"[")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hra_diffusion.files.os.replace", refuse)
    with pytest.warns(Note, match="can't be moved"):
        assert records.read(tmp_path / "state.json", State, 3) == 3
    with warnings.catch_warnings(action="error"):
        assert records.read(tmp_path / "state.json", State, 3) == 3


def test_damaged_lines_are_skipped_with_one_warning(tmp_path):
    path = tmp_path / "votes.jsonl"
    odd = [content.replace(b"\n", b"") for content in GARBAGE.values() if isinstance(content, bytes)]
    path.write_bytes(b"\n".join([b'{"winner": "a"}', *odd, b'{"winner": [1]}', b'{"winner": "b", "at": 3}', b'{"win']))
    with pytest.warns(Note, match=r"votes\.jsonl has a damaged line") as said:
        assert records.read_lines(path, Vote) == [Vote("a"), Vote("b", 3)]
    assert len(said) == 1 and path.exists()
    damage(tmp_path / "folder.jsonl", "folder")
    with pytest.warns(Note, match="a folder is in its place"):
        assert records.read_lines(tmp_path / "folder.jsonl", Vote) == []
