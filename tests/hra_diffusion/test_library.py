"""Saved adapters: finding, renaming, copying, and error messages."""

import shutil

import pytest
import torch
from conftest import tiny_pipe
from safetensors.torch import load_file, save_file
from windows import windows  # noqa: F401 (a fixture)

from hra_diffusion import library, trash
from hra_diffusion.adapters import attachment
from hra_diffusion.adapters.adapter_file import AdapterFileError, read_info
from hra_diffusion.errors import UserError
from hra_diffusion.files import _temporary_path


def test_renaming_changes_file_folder_and_metadata(adapter, tmp_path):
    before = load_file(adapter)
    new = library.rename(adapter, "Max")
    assert new == tmp_path / "Max" / "Max.safetensors" and read_info(new).name == "Max"
    assert (tmp_path / "Max" / "samples").is_dir() and not (tmp_path / "Rex").exists()
    assert all(torch.equal(tensor, before[key]) for key, tensor in load_file(new).items())


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "con", "x" * 65])
def test_renaming_refuses_unsafe_names(adapter, name):
    with pytest.raises(ValueError, match="the name"):
        library.rename(adapter, name)
    assert adapter.is_file()


@pytest.mark.parametrize("name", ["../x", "", "Rex (v2)"])
def test_renaming_an_adapter_outside_a_run_folder_refuses_unsafe_names(adapter, tmp_path, name):
    loose = adapter.rename(tmp_path / "loose.safetensors")
    with pytest.raises(ValueError, match="the name"):
        library.rename(loose, name)
    assert read_info(loose).name == "Rex"


@pytest.mark.parametrize("name", ["कुत्ता", "மினி", "Häschen", "小狗"])
def test_names_in_all_languages(adapter, name):
    assert read_info(library.rename(adapter, name)).name == name


def test_renaming_refuses_a_name_in_use(adapter, tmp_path):
    (tmp_path / "Max").mkdir()
    with pytest.raises(ValueError, match="'Max' already"):
        library.rename(adapter, "Max")
    assert read_info(adapter).name == "Rex"


def test_added_files_are_checked_and_named_after_their_folder(adapter, tmp_path):
    copy = library.add_file(adapter, tmp_path / "Rex 2")
    assert copy == tmp_path / "Rex 2" / "Rex 2.safetensors" and read_info(copy).name == "Rex 2"
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, other)
    with pytest.raises(AdapterFileError, match="not an adapter of hra-diffusion"):
        library.add_file(other, tmp_path / "library")
    assert not (tmp_path / "library").exists()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(adapter.read_bytes()[:-10])
    with pytest.raises(AdapterFileError, match="not a complete safetensors file"):
        library.add_file(cut, tmp_path / "library")


@pytest.mark.parametrize(
    ("given", "similar"),
    [("Rex/Rex", "Rex/Rex.safetensors"), ("Rex.safetensors", "Rex/Rex.safetensors"), ("Rex", "Rex/Rex.safetensors"),
     ("Rexx.safetensors", "Rex/Rex.safetensors"), ("Unlike/it.safetensors", "")],
)  # fmt: skip
def test_a_missing_file_is_reported_with_similar_ones(given, similar, adapter, tmp_path):
    with pytest.raises(UserError) as error:
        library.find_adapter(f"{tmp_path}/{given}", [])
    message = f"there is no adapter file {tmp_path / given}"
    assert str(error.value) == (f"{message}; similar files: {tmp_path / similar}" if similar else message)


def test_another_programs_folder_is_reported_with_the_import_command(tmp_path):
    (tmp_path / "my peft").mkdir()
    (tmp_path / "my peft" / "adapter_model.safetensors").touch()
    with pytest.raises(UserError, match=r"another program's folder; import it with hra-diffusion import '.*my peft'"):
        library.find_adapter(str(tmp_path / "my peft"), [])


def test_names_in_composed_and_decomposed_form_are_equal(adapter, tmp_path):
    """Also if an earlier version wrote the decomposed form."""
    composed, decomposed = "été", "e\u0301te\u0301"
    assert library.rename(adapter, decomposed).name == f"{composed}.safetensors"
    assert library.find_adapter(decomposed, [tmp_path]) == library.find_adapter(composed, [tmp_path])
    (tmp_path / composed).rename(tmp_path / decomposed)
    (tmp_path / decomposed / f"{composed}.safetensors").rename(tmp_path / decomposed / f"{decomposed}.safetensors")
    assert library.find_adapter(composed, [tmp_path]).parent.name == decomposed
    model = tiny_pipe().unet
    attachment.attach(model, "hra", {"rank": 2}, name=decomposed)
    assert attachment.adapter_names(model) == [composed]


def test_rename_trash_and_restore_by_the_rules_of_windows(windows, adapter, tmp_path):  # noqa: F811
    """Reading tensors maps their file into memory; it must be unmapped before the file is written again."""
    before = {key: tensor.clone() for key, tensor in load_file(adapter).items()}
    path = library.rename(adapter, "Max")
    assert read_info(path).name == "Max" and path == tmp_path / "Max" / "Max.safetensors"
    key = trash.move_to_trash(path, tmp_path)
    assert trash.restore(key, tmp_path) == tmp_path / "Max"
    copy = library.add_file(path, tmp_path / "Max 2")
    assert all(torch.equal(tensor, before[key]) for key, tensor in load_file(copy).items())
    assert not windows, "no file was in use when it was replaced or deleted"


def test_broken_files_and_other_programs_files_are_not_listed(adapter, tmp_path):
    broken, other = tmp_path / "Max" / "Max.safetensors", tmp_path / "exports" / "kohya.safetensors"
    for path in (broken, other):
        path.parent.mkdir()
    broken.write_bytes(adapter.read_bytes()[:-10])
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2)}, other)
    assert [item.path for item in library.list_adapters([tmp_path])] == [adapter]


@pytest.mark.parametrize("name", ["小" * 64, "x" * 64])
def test_the_longest_names_can_be_written(name, adapter, tmp_path):
    assert read_info(library.rename(adapter, name)).name == name


def test_names_that_are_too_long_for_a_file_are_refused(adapter):
    with pytest.raises(UserError, match="too long for the names of files"):
        library.rename(adapter, "𠀀" * 64)


def test_a_whole_temporary_file_is_no_adapter(adapter, tmp_path):
    """A process that is killed just before it renames the file leaves one."""
    for place in (adapter, tmp_path / "loose.safetensors"):
        shutil.copyfile(adapter, _temporary_path(place))
    assert [saved.path for saved in library.list_adapters([tmp_path])] == [adapter]
