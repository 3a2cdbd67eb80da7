"""Adapters on the hub, with huggingface_hub and a local server in place of the hub."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import stir, tiny_pipe
from fake_hub import fake_hub, online, run_python
from safetensors.torch import save_file

from hra_diffusion import pipeline
from hra_diffusion.adapters import attachment, hub, loading
from hra_diffusion.adapters.adapter_file import AdapterFileError

FIND = """
import json
from hra_diffusion.adapters import hub
from hra_diffusion.errors import UserError

def find(*arguments):
    try:
        return str(hub.local_file(*arguments))
    except UserError as error:
        return f"{type(error).__name__}: {error}"

print(json.dumps([find(*arguments) for arguments in CALLS]))
"""


def find(environment, *calls):
    """Find files in a new process; returns each one's path or error."""
    environment = environment | {"HF_HUB_DISABLE_XET": "1"}  # the server knows plain downloads only
    return run_python(f"CALLS = {calls!r}\n{FIND}", environment)


def load(path):
    return loading.load(Path(path), pipeline.components(tiny_pipe())).name


@pytest.fixture
def published(tmp_path):
    """A repository with an adapter and a readme."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "README.md").write_text("Rex")
    pipe = tiny_pipe()
    attachment.attach(pipe.unet, "hra", {"rank": 2}, name="Rex")
    stir(attachment.adapter_parameters(pipe.unet, "Rex").values())
    pipeline.save(pipe, folder / "Rex.safetensors", "Rex")
    return folder


def test_the_only_file_is_found_and_later_without_a_connection(published, tmp_path):
    with fake_hub("tester/rex", published) as endpoint:
        environment = online(endpoint, tmp_path / "home")
        *found, no_model, no_file, pickle, no_revision = find(
            environment,
            ("tester/rex",),
            ("tester/rex:Rex.safetensors",),
            ("tester/rex", "Rex.safetensors"),
            ("tester/none",),
            ("tester/rex:Max.safetensors",),
            ("tester/rex:README.md",),
            ("tester/rex", None, "v7"),
        )
    assert len({*found}) == 1 and load(found[0]) == "Rex"
    assert no_model.startswith("HubError: the hub has no model 'tester/none', or it is private")
    assert "tester/rex has no such file" in no_file and "tester/rex has no such revision" in no_revision
    assert "README.md is not a .safetensors file" in pickle
    cached, unknown = find(environment | {"HF_HUB_OFFLINE": "1"}, ("tester/rex",), ("tester/unknown",))
    assert cached == found[0]
    assert unknown.startswith("OfflineError: the Hugging Face hub can't be reached for tester/unknown")


def test_of_several_files_one_must_be_chosen(published, tmp_path):
    shutil.copy(published / "Rex.safetensors", published / "Rex-early.safetensors")
    with fake_hub("tester/rex", published, revision="v2") as endpoint:
        several, chosen = find(
            online(endpoint, tmp_path / "home"),
            ("tester/rex", None, "v2"),
            ("tester/rex", "Rex-early.safetensors", "v2"),
        )
    assert "choose one by weight_name: Rex-early.safetensors, Rex.safetensors" in several and load(chosen) == "Rex"


def test_a_gated_repository_needs_a_token(published, tmp_path):
    with fake_hub("tester/rex", published, gated=True) as endpoint:
        refused, found = find(
            online(endpoint, tmp_path / "home"), ("tester/rex",), ("tester/rex", None, None, "secret")
        )
    assert "the licence of tester/rex must be accepted first: open https://" in refused and load(found) == "Rex"


def test_another_programs_adapter_and_a_repository_of_pickles(published, tmp_path):
    (published / "Rex.safetensors").rename(published / "Rex.bin")
    with fake_hub("tester/lora", published) as endpoint:
        (pickled,) = find(online(endpoint, tmp_path / "home"), ("tester/lora",))
    assert pickled == "AdapterFileError: tester/lora contains no .safetensors file"
    tensors = {f"unet.mid_block.lora_{side}.weight": torch.ones(2, 2) for side in ("A", "B")}
    save_file(tensors, published / "pytorch_lora_weights.safetensors")
    with pytest.raises(AdapterFileError, match="is another program's adapter; import it with hra-diffusion import"):
        load(hub.local_file(published))


def test_local_paths_are_not_looked_up(published, tmp_path):
    file = published / "Rex.safetensors"
    assert hub.local_file(file) == hub.local_file(str(published)) == hub.local_file(published, file.name) == file
    for missing in ("outputs/Rex.safetensors", "Rex", "/a/b/c", "../x/y", "~/x", r"C:\adapters\Rex.safetensors"):
        assert str(hub.local_file(missing)) == missing
    shutil.copy(file, published / "Max.safetensors")
    with pytest.raises(AdapterFileError, match=r"several files; choose one by weight_name: Max\.s.*, Rex"):
        hub.local_file(published)
