"""Training end to end on a tiny base model."""

import inspect
import json
import warnings

import numpy as np
import pytest
import torch
from conftest import relative, save_photos, tiny_pipe, weights
from diffusers import EulerDiscreteScheduler
from safetensors.torch import load_file
from transformers import PreTrainedModel

import hra_diffusion
from hra_diffusion.adapters import adapter_file, attachment, registry
from hra_diffusion.errors import Note
from hra_diffusion.generation.sampling import GenerationError
from hra_diffusion.models import loading
from training import config as configs
from training.data.dataset import load_dataset
from training.errors import TrainingError
from training.loop import train
from training.runs.events import Checkpoint, Finished, Notice, Phase, Sample, Step
from training.runs.lookup import find, photos_of
from training.runs.run_folder import Run


@pytest.mark.parametrize("method", registry.method_names())
def test_every_method_trains_an_adapter_from_photos(settings, tmp_path, base_folder, method):
    events = []
    adapter = train(settings(method=method), tmp_path, [events.append])
    assert adapter == tmp_path / "Rex" / "Rex.safetensors"
    info = adapter_file.read_info(adapter)
    assert (info.method, info.trigger, info.class_noun, info.base) == (method, "sks", "dog", "tiny-sd")
    pipe = hra_diffusion.load_base(str(base_folder), "cpu")
    hra_diffusion.load(pipe, adapter)
    few = hra_diffusion.Settings(steps=3)
    base, trained = (hra_diffusion.generate(pipe, "a sks dog", mix, settings=few)[0] for mix in ({}, {"Rex": 1.0}))
    assert np.asarray(base).tolist() != np.asarray(trained).tolist()

    phases = [event.name for event in events if isinstance(event, Phase)]
    assert phases[:4] == ["load base", "read photos", "class images", "cache"]
    assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3, 4]
    assert [event.step for event in events if isinstance(event, Sample)] == [0, 2, 4]
    rounds = {(adapter.parent / "samples" / f"{step:06}-0.png").read_bytes() for step in (0, 2, 4)}
    assert len(rounds) == 3, "each round shows the current adapter"
    assert [event.step for event in events if isinstance(event, Checkpoint)] == [2, 4]
    assert isinstance(events[-1], Finished) and set(events[-1].phases) == {*phases}


def test_prediction_type_and_zero_snr_can_be_overridden(settings, tmp_path, base_folder):
    """They set the training target and the class images, and are saved in the adapter."""
    few = {"steps": 1, "num_class_images": 1, "sample_prompts": []}
    plain = train(settings(**few), tmp_path)
    velocity = train(settings(**few, name="V", prediction_type="v_prediction", rescale_zero_snr=True), tmp_path)
    assert relative(weights(velocity), weights(plain)) > 1e-3
    infos = [adapter_file.read_info(file) for file in (plain, velocity)]
    assert [(info.prediction_type, info.zero_snr) for info in infos] == [("epsilon", False), ("v_prediction", True)]
    assert len(list((tmp_path / ".cache" / "class-images").iterdir())) == 2


def test_training_on_a_distilled_base_emits_a_notice(settings, tmp_path):
    pipe, events = tiny_pipe(), []
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    train(settings(steps=1, num_class_images=1, sample_prompts=[]), tmp_path, [events.append], pipe=pipe)
    messages = [event.message for event in events if isinstance(event, Notice)]
    assert any("this base looks distilled to generate in a few steps" in message for message in messages)


def test_warnings_about_the_base_become_notices(settings, tmp_path, monkeypatch):
    def load_base(*given):
        warnings.warn("it does not say what it predicts", Note, stacklevel=1)
        return tiny_pipe()

    events = []
    monkeypatch.setattr("hra_diffusion.models.loading.load_base", load_base)
    train(settings(steps=1, num_class_images=1, sample_prompts=[]), tmp_path, [events.append])
    assert Notice("it does not say what it predicts") in events


def test_revision_and_variant_of_the_base_are_used_and_recorded(settings, tmp_path, monkeypatch):
    given = {}
    original = loading.load_base

    def load_base(*values, **more):
        bound = inspect.signature(original).bind(*values, **more)
        given.update(bound.arguments)
        return tiny_pipe()

    monkeypatch.setattr("hra_diffusion.models.loading.load_base", load_base)
    few = {"steps": 1, "num_class_images": 1, "sample_prompts": []}
    train(settings(**few, base_revision="v2", base_variant="fp16"), tmp_path)
    assert (given["revision"], given["variant"]) == ("v2", "fp16") and given.get("token") is None
    recorded = (tmp_path / "Rex" / "config.yaml").read_text()
    assert "base_revision: v2" in recorded and "base_variant: fp16" in recorded and "\ntoken" not in recorded


def test_run_folder_contents(settings, tmp_path, base_folder):
    config = settings()
    train(config, tmp_path)
    run = find(tmp_path, "Rex")
    assert run is not None and run.config == config and run.state.status == "finished"
    assert sorted(p.name for p in (run.folder / "samples").iterdir()) == [
        "000000-0.png",
        "000002-0.png",
        "000004-0.png",
    ]
    lines = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert lines[-1]["event"] == "finished" and sum(line["event"] == "step" for line in lines) == 4
    assert not list(tmp_path.rglob("*.tmp*")), "no temporary files are left"
    pipe = hra_diffusion.load_base(str(base_folder), "cpu")
    for checkpoint in run.checkpoints():
        hra_diffusion.load(pipe, checkpoint / "adapter.safetensors", checkpoint.name)
    assert hra_diffusion.loaded(pipe) == ["000002", "000004"], "every checkpoint is a usable adapter"


def test_adapters_and_checkpoints_find_their_training_photos(settings, tmp_path):
    config, run = settings(crop="letterbox"), Run(tmp_path / "Rex")
    configs.write(config, run.folder / "config.yaml")
    expected = [photo.image.tobytes() for photo in load_dataset(config.photos, 64, "letterbox").photos]
    for adapter in (run.adapter, run.checkpoint_folder(2) / "adapter.safetensors"):
        assert [image.tobytes() for image in photos_of(adapter, 64)] == expected
    assert photos_of(tmp_path / "loose.safetensors", 64) == []


def test_gradient_checkpointing_with_transformers_before_5_23(settings, tmp_path, monkeypatch):
    for verb in ("enable", "disable"):
        own = getattr(PreTrainedModel, f"_activation_checkpointing_{verb}")
        monkeypatch.setattr(PreTrainedModel, f"gradient_checkpointing_{verb}", own)
        monkeypatch.delattr(PreTrainedModel, f"activation_checkpointing_{verb}")
    assert train(settings(gradient_checkpointing=True), tmp_path).is_file()


def test_the_text_encoder_has_its_own_learning_rate(settings, tmp_path):
    """AdamW's first step is as large as the learning rate wherever the gradient is not zero."""
    config = settings(method="lora", steps=1, learning_rate=0.01, text_encoder_lr_scale=0.1, lr_scheduler="constant",
                      weight_decay=0, sample_prompts=[])  # fmt: skip
    trained = load_file(train(config, tmp_path))
    up = {key: float(value.abs().max()) for key, value in trained.items() if key.endswith(".up")}
    steps = {(key.split(".")[0], round(step, 4)) for key, step in up.items()}
    assert steps == {("unet", 0.01), ("text_encoder", 0.001)}


def test_the_base_files_do_not_change(settings, tmp_path, base_folder):
    before = {path: path.read_bytes() for path in base_folder.rglob("*.safetensors")}
    train(settings(), tmp_path)
    assert {path: path.read_bytes() for path in base_folder.rglob("*.safetensors")} == before


def test_prompt_notices_are_emitted_once(settings, tmp_path):
    photos = save_photos(tmp_path, 1)
    (photos / "0.txt").write_text("a (sks:1.3) dog in the deep snow under two stars")
    events = []
    sample = "a {subject} and a blue cat in the snow"
    train(settings(photos=[str(photos)], sample_prompts=[sample], steps=2), tmp_path, [events.append])
    cut, literal, sample_prompts = [event.message for event in events if isinstance(event, Notice)][-3:]
    assert "are cut off: “snow under two stars”" in cut
    assert "prompt weights have no effect in captions" in literal and "sample prompts" in sample_prompts
    assert "the snow”" in sample_prompts


def test_training_on_a_loaded_pipeline(settings, tmp_path):
    pipe = tiny_pipe()
    adapter = train(settings(gradient_checkpointing=True), tmp_path, pipe=pipe)
    assert hra_diffusion.active(pipe) == {"Rex": 1.0} and adapter_file.read_info(adapter).base == "tiny"
    assert not pipe.unet.training and not pipe.text_encoder.training and not pipe.unet.is_gradient_checkpointing


def test_the_same_seed_gives_the_same_weights(settings, tmp_path):
    first, again, other = (
        weights(train(settings(seed=seed, sample_every=0), tmp_path / str(i))) for i, seed in enumerate((1, 1, 2))
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_cudnn_attention_is_disabled(settings, tmp_path):
    torch.backends.cuda.enable_cudnn_sdp(True)
    train(settings(method="lora", steps=1, sample_every=0), tmp_path)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_nan_fails_the_run_and_keeps_good_checkpoints(settings, tmp_path):
    with pytest.raises(TrainingError, match=r"became (nan|inf) at step \d+; .*try a lower --learning-rate than 1"):
        train(settings(method="lora", learning_rate=1.0, max_grad_norm=1e30, steps=400, checkpoint_every=1,
                       sample_every=0, weight_decay=0, dtype="float16", mixed_precision="no", options={"alpha": 1e4},
                       prior_loss_weight=0, train_text_encoder=False), tmp_path)  # fmt: skip
    run = find(tmp_path, "Rex")
    assert run is not None and run.state.status == "failed" and "became" in run.state.reason
    assert not (run.folder / "Rex.safetensors").exists(), "a failed run has no finished adapter"
    for checkpoint in run.checkpoints():
        assert weights(checkpoint / "adapter.safetensors").isfinite().all()
    assert json.loads((run.folder / "events.jsonl").read_text().splitlines()[-1])["event"] == "failed"


def test_v_prediction_with_a_frozen_text_encoder(settings, tmp_path):
    base = tmp_path / "v-base"
    tiny_pipe("v_prediction").save_pretrained(base)
    adapter = train(settings(base=str(base), train_text_encoder=False), tmp_path)
    assert all(key.startswith("unet.") for key in load_file(adapter))


def test_the_loss_decreases_on_a_single_photo(settings, tmp_path, photos):
    events = []
    train(
        settings(photos=[str(photos / "0.jpg")], steps=60, prior_loss_weight=0, sample_every=0, batch_size=4,
                 flip=False, checkpoint_every=100, learning_rate=3e-2, method="lora"), tmp_path, [events.append],
    )  # fmt: skip
    losses = [event.loss for event in events if isinstance(event, Step)]
    assert np.mean(losses[-20:]) < np.mean(losses[:20])


def test_bfloat16_and_gradient_checkpointing(settings, tmp_path):
    adapter = train(settings(dtype="bfloat16", gradient_checkpointing=True, steps=2), tmp_path / "bf16")
    assert weights(adapter).isfinite().all()
    adapter = train(settings(mixed_precision="bf16", steps=2), tmp_path / "mixed")
    assert weights(adapter).isfinite().all()


def test_no_clip_model_is_loaded_without_samples(settings, tmp_path):
    events = []
    train(settings(base="toybox", sample_prompts=[], prior_loss_weight=0, train_text_encoder=False, steps=1,
                   batch_size=1), tmp_path, [events.append])  # fmt: skip
    assert "scores" not in [event.name for event in events if isinstance(event, Phase)]


def test_a_rank_too_large_for_the_base(settings, tmp_path):
    with pytest.raises(TrainingError, match=r"hra can't be attached to .*: rank 64 is too large"):
        train(settings(options={"rank": 64}), tmp_path)
    train(settings(), tmp_path)  # a run that failed before its first checkpoint does not block its name


def test_an_adapter_name_in_use_leaves_the_pipeline_unchanged(settings, tmp_path):
    pipe = tiny_pipe()
    attachment.attach(pipe.text_encoder, "lora", {"rank": 4}, name="Rex")
    with pytest.raises(TrainingError, match="'Rex' is on this model already"):
        train(settings(), tmp_path, pipe=pipe)
    assert attachment.adapter_names(pipe.unet) == [] and attachment.adapter_names(pipe.text_encoder) == ["Rex"]


def test_nan_class_images_fail_the_run_and_nan_samples_do_not(settings, tmp_path):
    """Training would learn from black class images; it does not need sample images."""
    broken, events = tiny_pipe(), []
    with torch.no_grad():
        broken.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(GenerationError, match="'a photo of a dog' with seed 0 came out as NaN"):
        train(settings(), tmp_path, pipe=broken)
    assert not list((tmp_path / ".cache").rglob("*.png")) and Run(tmp_path / "Rex").state.status == "failed"
    without_classes = settings(method="lora", prior_loss_weight=0, train_text_encoder=False, steps=2)
    adapter = train(without_classes, tmp_path, [events.append], pipe=tiny_pipe_with(broken.vae))
    assert adapter.is_file() and not Run(tmp_path / "Rex").samples()
    messages = [event.message for event in events if isinstance(event, Notice)]
    assert [message.partition(":")[0] for message in messages] == [f"no sample images at step {n}" for n in (0, 2)]


def tiny_pipe_with(vae):
    pipe = tiny_pipe()
    pipe.register_modules(vae=vae)
    return pipe
