"""Base-output preservation: the base model's own output as the target for class captions."""

import pytest
import torch
from conftest import stir, tiny_xl_pipe, weights
from sessions import make_session

from hra_diffusion.adapters import registry
from training import config as configs
from training.batch import make_batches
from training.loop import train
from training.preservation import preservation_target
from training.step import TrainingStep, batch_loss

BASE_OUTPUT = {"preservation": "base-output", "prior_loss_weight": 1.0, "sample_prompts": []}


@pytest.mark.parametrize("with_text", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_target_is_what_the_base_predicts_for_the_class_caption(settings, tmp_path, with_text, checkpointing):
    changes = {"train_text_encoder": with_text, "gradient_checkpointing": checkpointing, "flip": True}
    session = make_session(settings(**BASE_OUTPUT, **changes, method="lora"), tmp_path)
    (batch,) = make_batches(session, 0)
    half = session.config.batch_size
    assert torch.equal(batch.latents[:half], batch.latents[half:]) and len(batch.latents) == 2 * half
    first = batch_loss(session, batch).item()
    denoised = session.denoiser(batch.latents, batch.timesteps, batch.text)  # a new adapter changes nothing
    expected = torch.cat([batch.target[:half], denoised[half:]]).detach()
    assert torch.allclose(preservation_target(session, batch), expected, atol=1e-5)
    stir(session.parameters.values())
    assert torch.allclose(preservation_target(session, batch), expected, atol=1e-5), "whatever the adapter has learned"
    loss = batch_loss(session, batch)
    adapted = session.denoiser(batch.latents, batch.timesteps, batch.text)
    errors = (adapted - expected).square().mean(dim=(1, 2, 3)) * batch.weights
    assert loss.item() == pytest.approx((errors[:half].mean() + errors[half:].mean()).item(), rel=1e-4)
    assert loss.item() != pytest.approx(first)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in session.parameters.values())


def test_class_captions_follow_the_order_of_a_shuffled_caption_and_are_never_dropped(settings, tmp_path, photos):
    config = settings(**BASE_OUTPUT, caption="{subject}, a, b, c, d", shuffle_captions=True, caption_dropout=0.5)
    session = make_session(config, tmp_path)
    tokenizer = session.pipe.tokenizer

    def texts(ids):
        return [text.replace(" ", "") for text in tokenizer.batch_decode(ids[:, 0], skip_special_tokens=True)]

    seen = set()
    for step in range(20):
        (batch,) = make_batches(session, step)
        own = texts(batch.text["ids"])
        for caption, of_class in zip(own[:2], own[2:], strict=True):
            seen.add(caption == "")
            assert of_class and (caption == "" or of_class == caption.replace("sks", ""))
    assert seen == {True, False}


@pytest.mark.parametrize("method", registry.method_names())
def test_runs_with_base_output_need_no_class_images(settings, tmp_path, method):
    config = settings(**BASE_OUTPUT, method=method, steps=2, train_text_encoder=False)
    adapter = train(config, tmp_path)
    assert weights(adapter).isfinite().all() and not (tmp_path / ".cache" / "class-images").exists()


def test_sdxl_preserves_its_output(settings, tmp_path):
    config = settings(**BASE_OUTPUT, train_text_encoder=False)
    session = make_session(config, tmp_path, tiny_xl_pipe())
    assert TrainingStep(session)(1e-2).isfinite().all()


def test_choosing_base_output_switches_preservation_on():
    given = {"name": "Rex", "photos": ["."], "class_noun": "dog", "preset": "balanced"}
    assert configs.parse(given).prior_loss_weight == 0, "toybox's preset"
    chosen = configs.parse({**given, "preservation": "base-output"})
    assert chosen.uses_base_output and not chosen.uses_class_images
    assert not configs.parse({**given, "preservation": "base-output", "prior_loss_weight": 0}).uses_base_output
