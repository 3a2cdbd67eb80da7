"""Trained embeddings of a trigger's tokens."""

import copy

import pytest
import torch
from conftest import stir, tiny_pipe

import hra_diffusion as hra
from hra_diffusion import pipeline
from hra_diffusion.adapters import activation, adapter_file, attachment
from hra_diffusion.adapters.adapter_file import AdapterFileError
from hra_diffusion.adapters.token_embeddings import vectors_of, vectors_on
from hra_diffusion.errors import UserError

TOKENS = {"sks": [5], "ohwx man": [6, 7]}
IDS = torch.tensor([[1, 5, 9, 6, 7, 2], [1, 6, 9, 7, 6, 2]])
"""The second prompt has tokens of a trigger, but not the trigger."""


@pytest.fixture
def pipe():
    pipe = tiny_pipe()
    attachment.attach(pipe.unet, "lora", {"rank": 2}, name="Rex")
    size = pipe.text_encoder.config.hidden_size
    vectors = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    attachment.attach_vectors(pipe.text_encoder, "Rex", TOKENS, vectors)
    return pipe


def embedded(pipe, ids=IDS):
    return pipe.text_encoder.get_input_embeddings()(ids)


def plain(pipe, ids=IDS):
    return torch.nn.functional.embedding(ids, pipe.text_encoder.get_input_embeddings().weight)


def test_only_whole_triggers_are_replaced(pipe):
    own = vectors_of(pipe.text_encoder, "Rex").vectors.detach()
    expected = plain(pipe).clone()
    expected[0, 1], expected[0, 3:5] = own[0], own[1:]
    assert torch.equal(embedded(pipe), expected)


def test_strength_and_activation(pipe):
    base, whole = plain(pipe), embedded(pipe)
    activation.activate(pipe.text_encoder, {"Rex": 0.5})
    assert torch.allclose(embedded(pipe), (base + whole) / 2)
    activation.activate(pipe.text_encoder, {})
    assert torch.equal(embedded(pipe), base)


def test_groups_of_a_batch_have_their_own_adapters(pipe):
    whole, base, twice = embedded(pipe, IDS[:1]), plain(pipe, IDS[:1]), IDS[:1].repeat(4, 1)
    with activation.batch_adapters(pipe.text_encoder, [({"Rex": 1.0}, 1), ({}, 1)]):
        assert torch.equal(embedded(pipe, twice), torch.cat([whole, base, whole, base]))


def test_a_saved_adapter_brings_its_embeddings(pipe, tmp_path):
    pipeline.save(pipe, tmp_path / "Rex.safetensors", "Rex", trigger="sks", class_noun="dog")
    info = adapter_file.read_info(tmp_path / "Rex.safetensors")
    assert info.embeddings == {"text_encoder": TOKENS} and list(info.fingerprint) == ["unet"]
    other = tiny_pipe()
    pipeline.load(other, tmp_path / "Rex.safetensors")
    assert torch.equal(embedded(other), embedded(pipe)) and pipeline.subject_of(other, "Rex") == "sks dog"
    pipeline.unload(other, "Rex")
    assert torch.equal(embedded(other), plain(pipe)) and vectors_on(other.text_encoder) is None


def test_embeddings_that_do_not_fit_are_refused(pipe, tmp_path):
    file = tmp_path / "Rex.safetensors"
    pipeline.save(pipe, file, "Rex")
    info, tensors = adapter_file.read(file)
    for tokens in ({"sks": [10**6]}, {"sks": []}, {"sks": list(range(200))}, {"sks": [5]}):
        adapter_file.save(file, {}, info.model_copy(update={"embeddings": {"text_encoder": tokens}}), tensors)
        other = tiny_pipe()
        with pytest.raises(AdapterFileError):
            pipeline.load(other, file)
        assert pipeline.loaded(other) == []
    with pytest.raises(UserError, match="no token embedding"):
        attachment.attach_vectors(pipe.unet, "Rex", {"sks": [5]}, torch.zeros(1, 4))


def test_detaching_restores_the_encoder(pipe):
    before = {key: value.clone() for key, value in tiny_pipe().text_encoder.state_dict().items()}
    hra.detach(pipe, "Rex")
    assert pipe.text_encoder.state_dict().keys() == before.keys()
    assert not pipe.text_encoder.get_input_embeddings()._forward_hooks


def test_a_copy_has_its_own_embeddings(pipe):
    clone = copy.deepcopy(pipe.text_encoder)
    with torch.no_grad():
        stir([vectors_of(clone, "Rex").vectors], by=1.0)
    assert not torch.equal(clone.get_input_embeddings()(IDS), embedded(pipe))


def test_vectors_stay_in_float32(pipe):
    pipe.text_encoder.to(torch.bfloat16)
    assert vectors_of(pipe.text_encoder, "Rex").vectors.dtype == torch.float32
    assert embedded(pipe).dtype == torch.bfloat16
