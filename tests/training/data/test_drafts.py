"""Drafts of the page: adding, cropping, captioning and removing photos, and copying them for a run."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import distance, save_photos
from PIL import Image
from sample_photos import scene

from training.data import drafts
from training.data.dataset import load_dataset
from training.data.decode_process import DECODER
from training.data.drafts import Draft, box_from_zoom, free_photo_folder, zoom_from_box
from training.data.photo import PhotoError
from training.data.photo_files import MAX_PHOTOS


@pytest.fixture
def draft(tmp_path):
    return Draft(tmp_path / "draft")


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    return sorted(save_photos(folder, 3).glob("*.jpg"))


def test_photos_and_captions_are_stored(draft, files):
    caption = files[1].with_suffix(".txt")
    caption.write_text("a {subject}\nat night")
    assert draft.add([*files, caption]) == []
    again = Draft(draft.folder).read()
    assert [photo.file for photo in again.photos] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [photo.caption for photo in again.photos] == ["", "a {subject} at night", ""]


def test_txt_takes_precedence_over_caption_files(draft, files):
    for file, suffix in ((files[0], ".caption"), (files[1], ".caption"), (files[1], ".txt")):
        file.with_suffix(suffix).write_text(f"in {suffix}")
    more = [files[0].with_suffix(".caption"), files[1].with_suffix(".caption"), files[1].with_suffix(".txt")]
    assert draft.add([*files, *more]) == ["1.caption: 1.txt is the caption of this photo, so this file is ignored"]
    assert [photo.caption for photo in draft.read().photos] == ["in .caption", "in .txt", ""]


def test_captions_may_be_added_after_their_photos(draft, files):
    captions = [files[0].with_suffix(".txt"), files[0].with_name("other.txt")]
    for caption in captions:
        caption.write_text("a {subject} at night")
    draft.add(files)
    assert draft.add(captions) == ["other.txt: no photo has this name"]
    assert [photo.caption for photo in draft.read().photos] == ["a {subject} at night", "", ""]


def test_an_unusable_file_is_named_and_the_others_added(draft, files, tmp_path):
    bad = tmp_path / "in" / "notes.jpg"
    bad.write_text("not a photo")
    refused = draft.add([bad, *files])
    assert len(refused) == 1 and refused[0].startswith("notes.jpg: ") and str(tmp_path) not in refused[0]
    assert len(draft.read().photos) == 3


def test_a_file_over_the_size_limit_is_not_opened(draft, files, tmp_path):
    large = tmp_path / "in" / "film.jpg"
    with large.open("wb") as file:
        file.truncate(150_000_000)
    (refused,) = draft.add([large, *files])
    assert refused.startswith("film.jpg: 150 MB; a photo may have 100 MB at most") and len(draft.read().photos) == 3


def test_two_photos_may_have_the_same_name(draft, files, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (90, 90), "red").save(other / "0.jpg")
    draft.add([files[0], other / "0.jpg"])
    names = [photo.file for photo in draft.read().photos]
    assert len(set(names)) == 2 and len(list((draft.folder / "photos").iterdir())) == 2


def test_photos_with_any_suffix_are_copied_for_a_run(draft, files, tmp_path):
    """Browsers save JPEGs as .jfif, and phones share photos without a suffix."""
    odd = [files[0].rename(tmp_path / "in" / name) for name in ("shared",)]
    odd += [files[1].rename(tmp_path / "in" / "saved.jfif")]
    assert draft.add(odd) == []
    draft.copy_photos(tmp_path / "copies")
    assert [photo.path.name for photo in load_dataset([tmp_path / "copies"], 64).photos] == ["saved.jfif", "shared.jpg"]


def test_photos_with_the_same_stem_have_separate_captions(draft, files, tmp_path):
    other = tmp_path / "in" / "0.png"
    Image.new("RGB", (90, 90), "red").save(other)
    draft.add([files[0], other])
    for number, photo in enumerate(draft.read().photos):
        draft.change(photo.file, caption=f"caption {number}")
    draft.copy_photos(tmp_path / "copies")
    assert sorted(file.read_text() for file in (tmp_path / "copies").glob("*.txt")) == ["caption 0", "caption 1"]


def test_file_names_are_made_safe(draft, tmp_path):
    odd = tmp_path / "..;rm -rf $x`.png"
    Image.new("RGB", (90, 90), "red").save(odd)
    draft.add([odd])
    (name,) = [photo.file for photo in draft.read().photos]
    assert "/" not in name and "`" not in name and "$" not in name


def test_the_number_of_photos_is_limited(draft, files):
    refused = draft.add([files[0]] * (MAX_PHOTOS + 2))
    assert len(draft.read().photos) == MAX_PHOTOS and len(refused) == 2


def test_the_crop_box_is_applied(draft, files):
    draft.add(files)
    before, _ = draft.photos(64)
    draft.change("1.jpg", box=box_from_zoom(before[1].size, 2, 1, 0))
    after, _ = draft.photos(64)
    width, height = after[1].size
    assert after[1].crop == (width - height // 2, 0, width, height // 2)
    assert [a.crop for a in after[::2]] == [b.crop for b in before[::2]]


@pytest.mark.parametrize(("zoom", "across", "down"), [(1, 0, 0), (1, 1, 1), (4, 0.5, 0.5), (100, 1, 0)])
def test_every_slider_position_gives_a_valid_box(draft, files, zoom, across, down):
    draft.add(files[:1])
    draft.change("0.jpg", box=box_from_zoom((256, 192), zoom, across, down))
    photos, _ = draft.photos(64)
    assert len(photos) == 1


@pytest.mark.parametrize("place", [(1, 0.25, 0.5), (2, 1, 0), (3.2, 0.4, 0.75)])
def test_zoom_from_box_inverts_box_from_zoom(place):
    assert zoom_from_box((900, 600), box_from_zoom((900, 600), *place)) == pytest.approx(place, abs=0.01)


def test_photos_can_be_read_while_they_are_replaced(draft, files):
    """The page does both at once when a sample subject is clicked twice."""
    draft.add(files)
    with ThreadPoolExecutor(4) as pool:
        adding = [pool.submit(draft.add, files, replace_all=True) for _ in range(20)]
        shown = [pool.submit(draft.photos, 64) for _ in range(20)]
    assert all(not task.result() for task in adding) and {len(task.result()[0]) for task in shown} == {3}


def test_duplicates_give_a_warning(draft, files):
    draft.add([files[0], files[1], files[0]])
    _, warnings = draft.photos(64)
    assert [(w.kind, w.photo.name) for w in warnings if w.kind == "duplicate"] == [("duplicate", "0 3.jpg")]


def test_photos_are_copied_for_a_run(draft, files, tmp_path):
    with pytest.raises(PhotoError, match="No photos yet"):
        draft.copy_photos(tmp_path / "copies")
    draft.add(files)
    draft.change("0.jpg", box=(0, 0, 100, 100), caption="a {subject} here")
    folder = free_photo_folder(tmp_path, "Rex")
    boxes = draft.copy_photos(folder)
    assert boxes == {folder / "0.jpg": (0, 0, 100, 100)}
    assert sorted(path.name for path in folder.iterdir()) == ["0.jpg", "0.txt", "1.jpg", "2.jpg"]
    assert free_photo_folder(tmp_path, "Rex").name == "Rex 2"


def test_form_values_and_removals_are_stored(draft, files):
    draft.add(files)
    draft.save_values(noun="dog", several=["lora"])
    draft.remove("0.jpg")
    contents = draft.read()
    assert contents.values == {"noun": "dog", "several": ["lora"]}
    assert [photo.file for photo in contents.photos] == ["1.jpg", "2.jpg"]
    assert not (draft.folder / "photos" / "0.jpg").exists()
    draft.clear()
    assert draft.read().photos == ()


def test_the_page_shows_the_crops_of_training(draft, tmp_path):
    """From small copies: the page never decodes a photo itself."""
    for number in range(3):
        scene(number, 1600 + 500 * number, 1200).save(tmp_path / f"{number}.png")
    draft.add(sorted(tmp_path.glob("*.png")))
    box = box_from_zoom((1600, 1200), 2, 0.3, 0.7)
    draft.change("0.png", box=box)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.data.decoding.decode", None)
        shown, _ = draft.photos(64)
        assert draft.upright("2.png").image.size == (2219, 1024)
    folder = draft.folder / "photos"
    trained = load_dataset([folder], 64, boxes={folder / "0.png": box}).photos
    assert [(a.crop, a.frame, a.size, a.sha256) for a in shown] == [
        (b.crop, b.frame, b.size, b.sha256) for b in trained
    ]
    assert max(distance(a.image, b.image) for a, b in zip(shown, trained, strict=True)) < 1.5


def test_no_lock_is_held_while_a_photo_is_decoded(draft, files, tmp_path, monkeypatch):
    decoding, others = threading.Event(), threading.Event()
    original = DECODER.decode

    def slow(*paths):
        decoding.set()
        assert others.wait(20)
        return original(*paths)

    monkeypatch.setattr(DECODER, "decode", slow)
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(draft.add, files[:1])
        assert decoding.wait(20)
        draft.save_values(noun="dog")
        Draft(tmp_path / "another").save_values(noun="cat")
        others.set()
        assert adding.result(timeout=20) == []
    assert draft.read().values == {"noun": "dog"} and len(draft.read().photos) == 1


def test_the_megapixels_of_a_draft_are_limited(draft, files, monkeypatch):
    monkeypatch.setattr(drafts, "MAX_MEGAPIXELS", 256 * 192 * 1.5 / 1e6)
    (refused,) = draft.add(files)
    assert refused.startswith("2.jpg: the photos have more than") and len(draft.read().photos) == 2
    assert len(draft.add(files[:1])) == 1


def test_a_crash_loses_no_photo_that_is_listed(draft, files, monkeypatch):
    """Whether the process ends before draft.json is written, or after it but before the files are deleted."""
    draft.add(files)
    draft.change("1.jpg", caption="kept")
    for function in ("write_text", "remove"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(drafts, function, interrupt)
            draft.remove("0.jpg")
    listed = draft.read().photos
    assert [(photo.file, photo.caption) for photo in listed] == [("1.jpg", "kept"), ("2.jpg", "")]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(drafts, "move", interrupt)
        draft.add(files, replace_all=True)
    assert draft.read().photos == listed and len(draft.photos(64)[0]) == 2
    draft.save_values(noun="dog")
    assert sorted(path.name for path in (draft.folder / "photos").iterdir()) == ["1.jpg", "2.jpg"]


def interrupt(*_):
    raise KeyboardInterrupt


def test_drafts_of_earlier_versions_have_no_small_copies(draft, files):
    draft.add(files)
    shutil.rmtree(draft.folder / "previews")
    drafts._cropped.cache_clear()
    assert len(draft.photos(64)[0]) == 3 and len(list((draft.folder / "previews").iterdir())) == 6
