"""A subject in preparation: photos in, checked, cut, captioned, kept, and handed to a run."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import save_photos
from PIL import Image

from training.data.dataset import load_dataset
from training.data.drafts import Draft, free_album, zoom_of, zoomed
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


def test_photos_come_with_their_captions_and_survive(draft, files):
    caption = files[1].with_suffix(".txt")
    caption.write_text("a {subject}\nat night")
    assert draft.add([*files, caption]) == []
    again = Draft(draft.folder).read()
    assert [photo.file for photo in again.photos] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [photo.caption for photo in again.photos] == ["", "a {subject} at night", ""]


def test_captions_may_be_caption_files(draft, files):
    for file, suffix in ((files[0], ".caption"), (files[1], ".caption"), (files[1], ".txt")):
        file.with_suffix(suffix).write_text(f"in {suffix}")
    more = [files[0].with_suffix(".caption"), files[1].with_suffix(".caption"), files[1].with_suffix(".txt")]
    assert draft.add([*files, *more]) == ["1.caption: 1.txt is the caption of this photo, and this one is left out"]
    assert [photo.caption for photo in draft.read().photos] == ["in .caption", "in .txt", ""]


def test_captions_may_come_after_their_photos(draft, files):
    captions = [files[0].with_suffix(".txt"), files[0].with_name("other.txt")]
    for caption in captions:
        caption.write_text("a {subject} at night")
    draft.add(files)
    assert draft.add(captions) == ["other.txt: there is no photo of this name to put the caption to"]
    assert [photo.caption for photo in draft.read().photos] == ["a {subject} at night", "", ""]


def test_what_is_no_photo_is_refused_by_name_and_the_rest_taken(draft, files, tmp_path):
    bad = tmp_path / "in" / "notes.jpg"
    bad.write_text("not a photo")
    refused = draft.add([bad, *files])
    assert len(refused) == 1 and refused[0].startswith("notes.jpg: ") and str(tmp_path) not in refused[0]
    assert len(draft.read().photos) == 3


def test_a_file_far_too_large_for_a_photo_is_not_even_opened(draft, files, tmp_path):
    large = tmp_path / "in" / "film.jpg"
    with large.open("wb") as file:
        file.truncate(150_000_000)
    (refused,) = draft.add([large, *files])
    assert refused.startswith("film.jpg: 150 MB; a photo may have 100 MB at most") and len(draft.read().photos) == 3


def test_the_same_name_twice_is_two_photos(draft, files, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (90, 90), "red").save(other / "0.jpg")
    draft.add([files[0], other / "0.jpg"])
    names = [photo.file for photo in draft.read().photos]
    assert len(set(names)) == 2 and len(list((draft.folder / "photos").iterdir())) == 2


def test_a_photo_of_any_suffix_reaches_the_run(draft, files, tmp_path):
    """Browsers save JPEGs as .jfif, and phones share them under no name at all."""
    odd = [files[0].rename(tmp_path / "in" / name) for name in ("shared",)]
    odd += [files[1].rename(tmp_path / "in" / "saved.jfif")]
    assert draft.add(odd) == []
    draft.settle(tmp_path / "album")
    assert [photo.path.name for photo in load_dataset([tmp_path / "album"], 64).photos] == ["saved.jfif", "shared.jpg"]


def test_photos_of_one_stem_keep_their_own_captions(draft, files, tmp_path):
    twin = tmp_path / "in" / "0.png"
    Image.new("RGB", (90, 90), "red").save(twin)
    draft.add([files[0], twin])
    for number, photo in enumerate(draft.read().photos):
        draft.change(photo.file, caption=f"caption {number}")
    draft.settle(tmp_path / "album")
    assert sorted(file.read_text() for file in (tmp_path / "album").glob("*.txt")) == ["caption 0", "caption 1"]


def test_names_of_files_cannot_leave_the_folder(draft, tmp_path):
    odd = tmp_path / "..;rm -rf $x`.png"
    Image.new("RGB", (90, 90), "red").save(odd)
    draft.add([odd])
    (name,) = [photo.file for photo in draft.read().photos]
    assert "/" not in name and "`" not in name and "$" not in name


def test_there_is_a_most(draft, files):
    refused = draft.add([files[0]] * (MAX_PHOTOS + 2))
    assert len(draft.read().photos) == MAX_PHOTOS and len(refused) == 2


def test_a_crop_is_what_is_learned_from(draft, files):
    draft.add(files)
    before, _ = draft.photos(64)
    draft.change("1.jpg", box=zoomed(before[1].size, 2, 1, 0))
    after, _ = draft.photos(64)
    width, height = after[1].size
    assert after[1].crop == (width - height // 2, 0, width, height // 2)
    assert [a.crop for a in after[::2]] == [b.crop for b in before[::2]]


@pytest.mark.parametrize(("zoom", "across", "down"), [(1, 0, 0), (1, 1, 1), (4, 0.5, 0.5), (100, 1, 0)])
def test_every_position_of_the_sliders_is_a_box_in_the_photo(draft, files, zoom, across, down):
    draft.add(files[:1])
    draft.change("0.jpg", box=zoomed((256, 192), zoom, across, down))
    photos, _ = draft.photos(64)
    assert len(photos) == 1


@pytest.mark.parametrize("place", [(1, 0.25, 0.5), (2, 1, 0), (3.2, 0.4, 0.75)])
def test_the_sliders_open_where_the_crop_is(place):
    assert zoom_of((900, 600), zoomed((900, 600), *place)) == pytest.approx(place, abs=0.01)


def test_photos_are_shown_while_others_take_their_place(draft, files):
    """A page asks for both at once, as when a sample is chosen twice."""
    draft.add(files)
    with ThreadPoolExecutor(4) as pool:
        adding = [pool.submit(draft.add, files, anew=True) for _ in range(20)]
        shown = [pool.submit(draft.photos, 64) for _ in range(20)]
    assert all(not task.result() for task in adding) and {len(task.result()[0]) for task in shown} == {3}


def test_doubles_are_named(draft, files):
    draft.add([files[0], files[1], files[0]])
    _, warnings = draft.photos(64)
    assert [(w.kind, w.photo.name) for w in warnings if w.kind == "duplicate"] == [("duplicate", "0 3.jpg")]


def test_settled_photos_make_a_run(draft, files, tmp_path):
    with pytest.raises(PhotoError, match="No photos yet"):
        draft.settle(tmp_path / "album")
    draft.add(files)
    draft.change("0.jpg", box=(0, 0, 100, 100), caption="a {subject} here")
    album = free_album(tmp_path, "Rex")
    boxes = draft.settle(album)
    assert boxes == {album / "0.jpg": (0, 0, 100, 100)}
    assert sorted(path.name for path in album.iterdir()) == ["0.jpg", "0.txt", "1.jpg", "2.jpg"]
    assert free_album(tmp_path, "Rex").name == "Rex 2"


def test_the_forms_values_and_a_removal_are_kept(draft, files):
    draft.add(files)
    draft.keep(noun="dog", several=["lora"])
    draft.remove("0.jpg")
    contents = draft.read()
    assert contents.values == {"noun": "dog", "several": ["lora"]}
    assert [photo.file for photo in contents.photos] == ["1.jpg", "2.jpg"]
    assert not (draft.folder / "photos" / "0.jpg").exists()
    draft.clear()
    assert draft.read().photos == ()
