"""Finding photos and their captions in files and folders."""

import os

import pytest
from sample_photos import scene

from training.data.dataset import load_dataset
from training.data.decoding import load_photo
from training.data.photo import PhotoError
from training.data.photo_files import find_photos, read_captions


def test_find_photos_resolves_sorts_and_deduplicates_files_and_folders(tmp_path, save):
    b, c, a = save(scene(), "in/b.jpg"), save(scene(1), "in/c.PNG"), save(scene(2), "a.webp")
    link = tmp_path / "link.jpg"
    link.symlink_to(b)
    assert find_photos([tmp_path / "in", tmp_path / "in" / ".." / "a.webp", link, c]) == sorted([a, b, c])


def test_hidden_files_are_skipped_and_other_files_reported(tmp_path, save):
    save(scene(), "dog.jpg")
    for name in (".DS_Store", "._dog.jpg", "Thumbs.db", "dog.txt", "orphan.txt", "notes.md"):
        (tmp_path / name).write_text("words")
    (tmp_path / "more").mkdir()
    dataset = load_dataset([tmp_path], 64)
    assert [path.name for path in dataset.ignored] == ["more", "notes.md", "orphan.txt"]
    assert [(warning.kind, warning.photo) for warning in dataset.warnings] == [("ignored", p) for p in dataset.ignored]
    folder, other, orphan = (warning.message for warning in dataset.warnings)
    assert folder.startswith("more: subfolders are not searched")
    assert other == "notes.md: not a photo; ignored."
    assert "The caption of dog.jpg is dog.txt" in orphan


def test_a_caption_file_given_with_its_photo_is_not_a_photo(tmp_path, save):
    photo = save(scene(), "dog.jpg")
    (tmp_path / "dog.txt").write_text("a dog")
    assert find_photos([tmp_path / "dog.txt", photo]) == [photo]


def test_an_empty_list_is_rejected():
    with pytest.raises(PhotoError, match=r"No photos were given. Give a folder"):
        load_dataset([], 64)


def test_a_folder_without_photos_is_rejected(tmp_path, save):
    save(scene(), "photos/dog.jpg")
    with pytest.raises(PhotoError, match=r"no photos in this folder\. Put JPEG, PNG, WebP or HEIC files directly"):
        find_photos([tmp_path])


def test_a_missing_path_is_rejected(tmp_path):
    with pytest.raises(PhotoError, match=r"nowhere\.jpg: does not exist"):
        find_photos([tmp_path / "nowhere.jpg"])


def test_the_limit_is_fifty_photos(tmp_path):
    (tmp_path / "00.jpg").write_bytes(b"")
    for number in range(1, 50):
        (tmp_path / f"{number:02}.jpg").hardlink_to(tmp_path / "00.jpg")
    assert len(find_photos([tmp_path])) == 50
    (tmp_path / "50.jpg").write_bytes(b"")
    with pytest.raises(PhotoError, match="51 photos were given; the limit is 50"):
        find_photos([tmp_path])


def test_circular_links_are_unreadable(tmp_path):
    loop = tmp_path / "loop.jpg"
    loop.symlink_to(loop)
    with pytest.raises(PhotoError, match=r"loop\.jpg: cannot be read"):
        find_photos([loop])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_missing_permissions_are_reported(tmp_path, save):
    photo = save(scene(), "in/dog.jpg")
    photo.chmod(0)
    with pytest.raises(PhotoError, match=r"dog\.jpg: cannot be read \(Permission denied\)"):
        load_photo(photo)
    photo.parent.chmod(0)
    try:
        with pytest.raises(PhotoError, match=r"in: cannot be read \(Permission denied\)"):
            find_photos([photo.parent])
    finally:
        photo.parent.chmod(0o700)


def test_a_pipe_is_rejected_without_blocking(tmp_path, save):
    save(scene(), "dog.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PhotoError, match="neither a file nor a folder"):
        load_photo(tmp_path / "pipe.jpg")
    assert [path.name for path in find_photos([tmp_path])] == ["dog.jpg"]


def test_captions_are_read_from_txt_files(tmp_path, save):
    save(scene(), "a.jpg"), save(scene(1), "b.jpg")
    (tmp_path / "a.txt").write_text("  a façade,\n at night\n", encoding="utf-8-sig")
    assert [photo.caption for photo in load_dataset([tmp_path], 64).photos] == ["a façade, at night", None]


def test_txt_takes_precedence_over_caption_files(tmp_path, save):
    """kohya's suffix; .txt counts where both are there."""
    for name in ("a", "b", "c"):
        save(scene(), f"{name}.jpg")
    (tmp_path / "a.caption").write_text("a dog\nsitting")
    (tmp_path / "b.caption").write_text("unused")
    (tmp_path / "b.txt").write_text("a dog")
    (tmp_path / "x.caption").write_text("of no photo")
    for paths in ([tmp_path], sorted(tmp_path.glob("[abc].*"))):
        dataset = load_dataset(paths, 64)
        assert [photo.caption for photo in dataset.photos] == ["a dog sitting", "a dog", None]
        said = {warning.photo.name: warning.message for warning in dataset.warnings if warning.kind == "ignored"}
        assert said["b.caption"].startswith("b.caption: b.txt is the caption of this photo") and "a.caption" not in said
    assert read_captions([tmp_path]) == {photo.path: photo.caption for photo in dataset.photos}
    said = {warning.photo.name: warning.message for warning in load_dataset([tmp_path], 64).warnings}
    assert "no photo in the folder has this name" in said["x.caption"]


def test_the_caption_of_a_link_lies_beside_the_link(tmp_path, save):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dog.jpg").symlink_to(save(scene(), "store/8c1f", format="PNG"))
    (tmp_path / "set" / "dog.txt").write_text("a dog")
    (photo,) = load_dataset([tmp_path / "set"], 64).photos
    assert (photo.path, photo.caption) == (tmp_path / "store" / "8c1f", "a dog")


@pytest.mark.parametrize(
    ("content", "reason"), [(b" \n", "the caption is empty"), ("Hündin".encode("utf-16"), "the caption is not UTF-8")]
)
def test_an_unusable_caption_is_rejected(tmp_path, save, content, reason):
    save(scene(), "dog.jpg")
    (tmp_path / "dog.txt").write_bytes(content)
    with pytest.raises(PhotoError, match=rf"dog\.txt: {reason}"):
        load_dataset([tmp_path], 64)
