"""Adapter files: contents, loading, and errors for damaged or incompatible files."""

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from conftest import stir, tiny_pipe
from safetensors.torch import load_file, save_file

from hra_diffusion import pipeline
from hra_diffusion.adapters import adapter_file, attachment, fingerprint
from hra_diffusion.adapters.adapter_file import AdapterFileError, AdapterInfo
from hra_diffusion.files import CHECKSUM, FileError


@pytest.fixture
def saved(tmp_path, pipe):
    """File of an HRA adapter of the UNet and the text encoder of the tiny pipeline."""
    parts = pipeline.components(pipe)
    for model in parts.values():
        attachment.attach(model, "hra", {"rank": 4}, name="Rex")
        stir(attachment.adapter_parameters(model, "Rex").values())
    info = AdapterInfo(
        name="Rex",
        method="hra",
        options={"rank": 4},
        base="tiny",
        fingerprint=fingerprint.adapter_fingerprint(parts, "Rex"),
        trigger="sks",
        class_noun="dog",
    )
    adapter_file.save(tmp_path / "rex.safetensors", parts, info)
    return tmp_path / "rex.safetensors"


def rewrite(path, tensors=None, **metadata):
    """Write the file again with other tensors or metadata."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    kept = {key: value for key, value in header["__metadata__"].items() if key != CHECKSUM}
    save_file(tensors or load_file(path), path, kept | metadata)


def test_keys_name_component_layer_and_parameter(saved):
    keys = set(load_file(saved))
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.right.u" in keys
    assert "text_encoder.encoder.layers.0.self_attn.q_proj.right.u" in keys
    info = adapter_file.read_info(saved)
    assert (info.name, info.method, info.subject, info.base) == ("Rex", "hra", "sks dog", "tiny")


def test_loads_on_the_same_base_without_warnings(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.load(tiny_pipe(), saved)


@pytest.mark.parametrize("where", [b"class_noun", CHECKSUM.encode(), b"shape", "in a tensor", "in the last byte"])
def test_a_flipped_bit_is_refused(saved, where):
    data = bytearray(saved.read_bytes())
    places = {"in a tensor": len(data) // 2, "in the last byte": -1}
    data[data.index(where) if isinstance(where, bytes) else places[where]] ^= 1
    saved.write_bytes(data)
    with pytest.raises(AdapterFileError):
        adapter_file.read(saved)


def test_files_of_earlier_versions_have_no_checksum(saved):
    rewrite(saved)
    assert adapter_file.read(saved)[0].name == "Rex"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_low_precision_loads_without_warnings(saved, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.load(tiny_pipe().to(dtype), saved)


def test_other_weights_of_the_same_shape_give_a_warning(saved):
    other = tiny_pipe()
    stir([p for p in other.unet.parameters() if p.dim() > 1], by=0.1)
    with pytest.warns(UserWarning, match="trained on other weights of the same shape"):
        pipeline.load(other, saved)
    assert pipeline.loaded(other) == ["Rex"]


def drop(tensors, part):
    return {key: value for key, value in tensors.items() if part not in key}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "no adapter file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "not a complete safetensors file"),
        (lambda p: p.write_bytes(p.read_bytes()[:5]), "not a complete safetensors file"),
        (lambda p: p.write_bytes(b"\xff" * 64), "not a complete safetensors file"),
        (lambda p: save_file(load_file(p), p, {}), "not an adapter of hra-diffusion"),
        (lambda p: rewrite(p, format_version="2"), "format version 2, newer than 1"),
        (lambda p: rewrite(p, adapter="{}"), "damaged metadata"),
        (lambda p: rewrite(p, format_version="new"), "damaged metadata"),
        (lambda p: rewrite(p, drop(load_file(p), "mid_block")), "incomplete: unet.mid_block.* is missing"),
        (lambda p: rewrite(p, load_file(p) | {"unet.lost.right.u": torch.ones(2, 2)}), "contains unet.lost.right.u"),
        (lambda p: rewrite(p, {k: v * float("nan") for k, v in load_file(p).items()}), "NaN or infinite"),
        (lambda p: rewrite(p, {k: v[:-1].contiguous() for k, v in load_file(p).items()}), "for another base"),
    ],
)
def test_an_invalid_file_is_refused_and_the_pipeline_does_not_change(saved, damage, message):
    fresh = tiny_pipe()
    pipeline.load(fresh, saved, "other")
    pipeline.activate(fresh, {"other": 0.7})
    damage(saved)
    with pytest.raises(AdapterFileError, match=message):
        pipeline.load(fresh, saved)
    assert pipeline.loaded(fresh) == ["other"] and pipeline.active(fresh) == {"other": 0.7}


def test_a_file_that_is_deleted_while_it_is_opened_is_missing(saved, monkeypatch):
    def open_and_fail(path, framework):
        path.unlink()
        raise RuntimeError(f"unable to open file <{path}> in read-only mode")  # torch's

    monkeypatch.setattr(adapter_file, "safe_open", open_and_fail)
    with pytest.raises(AdapterFileError, match="no adapter file"):
        adapter_file.read_info(saved)


def test_another_architecture_is_refused_with_both_shapes(saved):
    narrow = tiny_pipe(cross_attention_dim=16)
    with pytest.raises(
        AdapterFileError, match=r"for another base \(tiny\).*attn2.to_k.*\(32, 4\) in the file, \(16, 4\) here"
    ):
        pipeline.load(narrow, saved)
    assert pipeline.loaded(narrow) == []


def test_a_name_in_use_is_refused(saved):
    fresh = tiny_pipe()
    pipeline.load(fresh, saved)
    with pytest.raises(AdapterFileError, match="loaded already"):
        pipeline.load(fresh, saved)
    pipeline.load(fresh, saved, "Rex 2")
    assert pipeline.loaded(fresh) == ["Rex", "Rex 2"]


def test_a_merged_pipeline_refuses_to_load(saved):
    fresh = tiny_pipe()
    pipeline.load(fresh, saved)
    pipeline.merge(fresh)
    with pytest.raises(AdapterFileError, match="unmerge"):
        pipeline.load(fresh, saved, "Rex 2")
    pipeline.unmerge(fresh)
    assert pipeline.loaded(fresh) == ["Rex"]


def test_an_adapter_attached_without_the_pipeline_can_be_saved(saved, tmp_path):
    pipe, other = tiny_pipe(), tiny_pipe()
    attachment.attach(pipe.unet, "moslora", {"rank": 2}, name="Mo")
    pipeline.save(pipe, tmp_path / "mo.safetensors", "Mo", trigger="qwe", class_noun="cat")
    info = pipeline.load(other, tmp_path / "mo.safetensors")
    assert (info.method, info.subject, info.base) == ("moslora", "qwe cat", "tiny")


def test_unload_restores_the_pipeline(saved):
    fresh, untouched = tiny_pipe(), tiny_pipe()
    pipeline.load(fresh, saved)
    pipeline.unload(fresh, "Rex")
    for name, part in pipeline.components(fresh).items():
        expected = pipeline.components(untouched)[name].state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in part.state_dict().items())


def test_a_full_disk_leaves_no_file():
    from pathlib import Path

    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    from hra_diffusion.files import atomic_path

    place = Path("/dev/shm") / "hra-diffusion-test.bin"
    with pytest.raises(FileError, match=r"the disk is full.*free some space"), atomic_path(place) as temporary:
        temporary.symlink_to("/dev/full")
        with temporary.open("wb", buffering=0) as file:
            file.write(b"x")
    assert not place.exists() and not list(place.parent.glob(".hra-diffusion-test*"))


def test_threads_that_write_the_same_file_don_t_mix_their_contents(tmp_path):
    from hra_diffusion.files import atomic_path

    both, place = Barrier(2, timeout=30), tmp_path / "state.json"

    def write(text):
        with atomic_path(place) as temporary:
            both.wait()
            temporary.write_text(text)
            both.wait()

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(write, ["a" * 9000, "b" * 9000])) == [None, None]
    assert set(place.read_text()) in ({"a"}, {"b"}) and list(tmp_path.iterdir()) == [place]


LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": {"unet": {LAYER: 1e200}}}, "no weight has such a probe"),
        ({"fingerprint": {"unet": {LAYER: "x"}}}, "valid number"),
        ({"fingerprint": {"unet": {}}}, "at least 1"),
        ({"fingerprint": {"unet": {"x" * 501: 1.0}}}, "500 characters"),
        ({"ranks": {"unet": {LAYER: -3}}}, "greater than or equal to 1"),
        ({"options": {"rank": -4}}, "greater than or equal to 1"),
        ({"options": {"rank": 4, "other": 1}}, "no option 'other'"),
        ({"name": "../x"}, "the name"),
        ({"name": "x" * 10**5}, "100000 characters"),
        ({"trigger": "x" * 1001}, "1000 characters"),
        ({"method": ["hra"]}, "valid string"),
        ({"training": {"seconds": 5}}, "should be an object"),
        ({"training": {"seconds": {"train": "x"}}}, "valid number"),
        ({"training": {"memory": [1]}}, "valid number"),
        ({"training": {"memory": 1e400}}, "finite"),
        ({"training": {"photos": "many"}}, "valid integer"),
        ({"training": {"resolution": "big"}}, "valid integer"),
        ({"training": {"note": "x" * 1_000_001}}, "1.0 MB of metadata"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_odd_metadata_are_refused_when_the_file_is_read(saved, changes, message):
    with saved.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    rewrite(saved, adapter=json.dumps(json.loads(header["__metadata__"]["adapter"]) | changes))
    for read in (adapter_file.read_info, adapter_file.read):
        with pytest.raises(AdapterFileError, match=message) as error:
            read(saved)
        assert len(str(error.value)) < 1500


@pytest.mark.parametrize("text", ["[" * 10**5, '{"name": ' + "9" * 5000 + "}", '"\\ud800"', "null", ""], ids=range(5))
def test_metadata_that_are_not_an_object_are_refused(saved, text):
    rewrite(saved, adapter=text)
    with pytest.raises(AdapterFileError, match="damaged metadata"):
        adapter_file.read_info(saved)


@pytest.mark.parametrize("version", ["9" * 5000, "²", "-1"])
def test_odd_format_versions_are_refused(saved, version):
    rewrite(saved, format_version=version)
    with pytest.raises(AdapterFileError, match="format version"):
        adapter_file.read_info(saved)


def test_tensors_of_odd_types_are_refused(saved):
    rewrite(saved, {key: tensor.to(torch.complex64) for key, tensor in load_file(saved).items()})
    with pytest.raises(AdapterFileError, match="the type C64"):
        adapter_file.read(saved)


def test_float8_tensors_are_read(saved):
    rewrite(saved, {key: tensor.to(torch.float8_e5m2) for key, tensor in load_file(saved).items()})
    fresh = tiny_pipe()
    pipeline.load(fresh, saved)
    assert pipeline.loaded(fresh) == ["Rex"]


def test_a_large_rank_is_refused_before_an_adapter_of_it_is_built(saved, monkeypatch):
    """A small file may list many layers with the largest rank."""
    info, tensors = adapter_file.read(saved)
    ranks = {component: dict.fromkeys(probes, 16) for component, probes in info.fingerprint.items()}
    adapter_file.save(saved, {}, info.model_copy(update={"ranks": ranks}), tensors)
    monkeypatch.setattr(attachment, "attach", lambda *_, **__: pytest.fail("an adapter is built"))
    with pytest.raises(AdapterFileError, match=r"in the file, .* here"):
        pipeline.load(tiny_pipe(), saved)


def test_a_module_in_the_place_of_a_layer_makes_the_file_incompatible(saved):
    info, tensors = adapter_file.read(saved)
    changed = info.model_copy(update={"fingerprint": {"unet": {"mid_block": 1.0}}})
    assert "made for another base model" in pipeline.incompatibility(changed, tiny_pipe())
    adapter_file.save(saved, {}, changed, tensors)
    with pytest.raises(AdapterFileError, match="mid_block"):
        pipeline.load(tiny_pipe(), saved)


def test_probes_of_zeros_fit_weights_of_zeros_only(saved):
    info, pipe = adapter_file.read_info(saved), tiny_pipe()
    unknown = info.model_copy(update={"fingerprint": {"unet": {LAYER: float("nan")}}})
    assert "its weights differ" in pipeline.incompatibility(unknown, pipe)
    torch.nn.init.zeros_(pipe.unet.get_submodule(LAYER).weight)
    assert pipeline.incompatibility(unknown, pipe) == ""


def test_metadata_of_earlier_versions_are_read(saved):
    old = {
        "name": "Rex", "method": "hra", "options": {"rank": 4, "orthogonality": "Infinity"}, "base": "toybox",
        "fingerprint": {"unet": {LAYER: "NaN"}}, "targets": "attention", "trigger": "sks", "class_noun": "dog",
        "training": {"step": 3, "photos": 5, "seconds": {"train": 1.5}, "prior_weight": 1.0, "resolution": None},
    }  # fmt: skip
    rewrite(saved, adapter=json.dumps(old))
    assert adapter_file.read_info(saved).training["prior_weight"] == 1.0
