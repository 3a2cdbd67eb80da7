"""A small dose of the faults that ``make faults`` injects in full."""

import pytest
from faults.faults import Bench, full_disk, garbage, kill, read_only, two_at_once


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    for place in (folder, *folder.parents[:2]):
        if place.name.startswith("pytest"):
            place.chmod(0o755)  # another user reads its inputs
    return Bench(folder)


@pytest.mark.parametrize("work", ["train", "export", "import", "queue", "page"])
def test_a_killed_work_loses_nothing(bench, work):
    assert kill(bench, work, 1).lost == 0


def test_a_full_disk_loses_nothing(bench):
    assert full_disk(bench, "train", [100_000]).lost == 0


def test_a_read_only_folder_loses_nothing(bench):
    assert read_only(bench, "import").lost == 0


def test_two_at_once_lose_nothing(bench):
    assert two_at_once(bench, "export", 1).lost == 0


def test_garbage_in_a_kept_file_is_no_traceback(bench):
    assert garbage(bench, ["folder", "other types"]).lost == 0
