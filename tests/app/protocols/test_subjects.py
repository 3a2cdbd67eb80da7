"""The subjects of the protocols."""

from pathlib import Path

import pytest
from conftest import SHARED
from PIL import Image

from app.protocols.subjects import Prompt, dreambooth_subjects, own_subject, toybox_subjects
from hra_diffusion.errors import UserError
from toybox.benchmark import describe
from toybox.subjects import SUBJECTS

DREAMBOOTH = SHARED / "data" / "dreambooth"


def test_toybox_has_its_ten_held_out_subjects_with_five_photos_and_their_own_prompts():
    found = toybox_subjects()
    assert [subject.name for subject in found] == list(SUBJECTS)
    for subject in found:
        expected = describe(SUBJECTS[subject.name])
        assert subject.class_noun == expected["class_noun"] and len(subject.photos) == 5
        assert subject.prompts == tuple(Prompt(**prompt) for prompt in expected["prompts"])


@pytest.mark.skipif(not DREAMBOOTH.is_dir(), reason="needs the DreamBooth photos in ../shared")
def test_live_subjects_and_objects_of_dreambooth_have_different_prompts():
    found = {subject.name: subject for subject in dreambooth_subjects(DREAMBOOTH)}
    assert len(found) == 10 and all(len(subject.prompts) == 25 for subject in found.values())
    assert found["dog"].class_noun == "dog" and found["bear_plushie"].class_noun == "stuffed animal"
    dog, teapot = ([prompt.text for prompt in found[name].prompts] for name in ("dog", "teapot"))
    assert "a {subject} wearing a santa hat" in dog and "a {subject} floating in an ocean of milk" in teapot
    assert len(set(dog) & set(teapot)) == 15


@pytest.mark.skipif(not DREAMBOOTH.is_dir(), reason="needs the DreamBooth photos in ../shared")
def test_the_released_code_takes_live_subjects_texts_for_prompts_10_to_19_of_objects_only():
    found = {subject.name: subject for subject in dreambooth_subjects(DREAMBOOTH)}
    wrong = {
        name: [number for number, prompt in enumerate(subject.prompts) if prompt.released != prompt.text]
        for name, subject in found.items()
    }
    live = {"cat", "dog", "dog6"}
    assert wrong == {name: [] if name in live else list(range(10, 20)) for name in found}
    assert found["teapot"].prompts[10].released == found["dog"].prompts[10].text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "--data"),
        ("nothing", "does not list"),
        ("dog,dog\n'a {0} {1}'.format\nLive Subject Prompts\n'b {0} {1}'.format", "no folder"),
    ],
)
def test_a_folder_that_is_not_the_dataset_is_refused(tmp_path: Path, text, message):
    if text:
        (tmp_path / "prompts_and_classes.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        dreambooth_subjects(tmp_path)


def test_own_photos_hold_out_the_last_one(tmp_path: Path):
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    subject = own_subject([tmp_path], "dog")
    assert [path.name for path in subject.references] == ["2.png"] and len(subject.photos) == 2
    assert len(subject.prompts) == 12 and all("{subject}" in prompt.text for prompt in subject.prompts)
    (tmp_path / "2.png").unlink()
    with pytest.raises(UserError, match="at least 3"):
        own_subject([tmp_path], "dog")
