"""Pivotal tuning: the trigger's embeddings are trained beside the adapter."""

import pytest
import torch
from conftest import StopAfter, tiny_pipe
from safetensors.torch import load_file

from hra_diffusion import pipeline
from hra_diffusion.adapters.token_embeddings import PARAMETER, vectors_of
from training.loop import train

KEY = f"text_encoder.{PARAMETER}"
PIVOTAL = {"train_trigger": True, "sample_prompts": [], "prior_loss_weight": 0}


@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_the_triggers_embedding_is_trained_and_resumes_exactly(settings, tmp_path, train_text_encoder):
    config = settings(**PIVOTAL, train_text_encoder=train_text_encoder)
    whole = load_file(train(config, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "out", [StopAfter(2)])
    resumed = load_file(train(config, tmp_path / "out", resume=True))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert any(".layers." in key for key in whole) == train_text_encoder
    start = load_file(tmp_path / "whole" / "Rex" / "checkpoints" / "000002" / "adapter.safetensors")
    assert not torch.equal(start[KEY], whole[KEY])


def test_it_starts_at_the_class_noun(settings, tmp_path):
    config, pipe = settings(**PIVOTAL, steps=1, learning_rate=1e-12, trigger="zwx"), tiny_pipe()
    pipeline.load(pipe, train(config, tmp_path))
    vectors = vectors_of(pipe.text_encoder, "Rex")
    noun = pipe.tokenizer("dog", add_special_tokens=False).input_ids
    expected = pipe.text_encoder.get_input_embeddings().weight[noun].mean(dim=0)
    assert list(vectors.tokens) == ["zwx"]
    assert torch.allclose(torch.cosine_similarity(vectors.vectors, expected, dim=1), torch.ones(1), atol=1e-4)


def test_its_norm_stays_that_of_the_vocabulary(settings, tmp_path):
    norms = tiny_pipe().text_encoder.get_input_embeddings().weight.norm(dim=1)
    trained = load_file(train(settings(**PIVOTAL, learning_rate=0.1), tmp_path))[KEY]
    assert torch.allclose(trained.norm(dim=1), norms.median())


def test_the_embedding_has_a_learning_rate_of_its_own(settings, tmp_path):
    def trained(name, **changes):
        values = {"steps": 1, "learning_rate": 1e-5, "weight_decay": 0} | changes
        return load_file(train(settings(**PIVOTAL, **values), tmp_path / name))[KEY]

    start = trained("start", learning_rate=1e-12)
    moved = trained("ten", trigger_lr_scale=10) - start, trained("one") - start
    assert torch.allclose(moved[0] / moved[1], torch.tensor(10.0), rtol=0.05)
