"""Damaged and missing files of drafts."""

import pytest
from conftest import save_photos
from damage import GARBAGE, damage
from PIL import Image

from hra_diffusion.errors import Note
from hra_diffusion.names import validated_name
from training.data.drafts import Draft


@pytest.fixture
def draft(tmp_path):
    (tmp_path / "in").mkdir()
    draft = Draft(tmp_path / "draft")
    draft.add(sorted(save_photos(tmp_path / "in", 3).glob("*.jpg")))
    draft.save_values(noun="dog")
    return draft


@pytest.mark.parametrize("how", GARBAGE)
def test_a_draft_with_a_damaged_list_keeps_its_photos(draft, how):
    damage(draft.folder / "draft.json", GARBAGE[how])
    with pytest.warns(Note, match="set aside"):
        assert [photo.file for photo in draft.read().photos] == ["0.jpg", "1.jpg", "2.jpg"]
    draft.save_values(noun="cat")
    assert draft.read().values == {"noun": "cat"} and len(draft.photos(64)[0]) == 3


def test_missing_and_damaged_photos_are_left_out_with_a_warning(draft, tmp_path):
    (draft.folder / "photos" / "0.jpg").unlink()
    truncated = draft.folder / "photos" / "1.jpg"
    truncated.write_bytes(truncated.read_bytes()[:200])
    photos, warnings = draft.photos(64)
    assert [photo.path.name for photo in photos] == ["2.jpg"]
    assert [warning.message for warning in warnings if warning.message.startswith("1.jpg: is ")]
    draft.copy_photos(tmp_path / "copies")
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["2.jpg"]
    for file in ("0.jpg", "gone.jpg"):
        with pytest.raises(ValueError, match="has been removed"):
            draft.photo(file, 64)


def test_photo_names_that_differ_only_in_case_or_accents(draft, tmp_path):
    """File systems of Windows and macOS treat such names as equal."""
    for number, name in enumerate(("Été.jpg", "e\u0301te\u0301.jpg", "ÉTÉ.jpg", "con.jpg", "Aux.png")):
        Image.new("RGB", (90, 90), (0, 50 * number, 0)).save(tmp_path / name)
        draft.add([tmp_path / name])
    stems = [photo.file.rpartition(".")[0] for photo in draft.read().photos]
    assert len({validated_name(stem).casefold() for stem in stems}) == 8
