"""Tests of the stages with small networks and a few steps, from sprites to a pipeline."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from hra_diffusion.evaluation.clip import Clip
from hra_diffusion.evaluation.judge import normalize
from hra_diffusion.files import atomic_path
from toybox import shards
from toybox.autoencoder import encode, mean_psnr, new_autoencoder
from toybox.base import new_scheduler
from toybox.base_training import BaseRecipe, loss_weights
from toybox.checkpoints import Progress
from toybox.clip import ClipRecipe, group_by_scene, sample_batch
from toybox.labels import UNSEEN, Label
from toybox.loop import Budget, Training
from toybox.objects import HELD_OUT, OBJECTS
from toybox.patches import PATCH, fit_patch_code, to_patches
from toybox.scenes import SCENES
from toybox.score import Score, Share, save_score
from toybox.scoring import unet_digest
from toybox.shards import Shard, load_shards, render_shard, save_shard
from toybox.stages import Stages

TINY = BaseRecipe(channels=(32, 32, 64), batch=4)


@pytest.fixture(scope="module")
def prepared(sprites: Path, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """Stages with renders, an encoder, latents, a CLIP model and a base model of one step."""
    folder = tmp_path_factory.mktemp("work")
    stages = Stages(folder, torch.device("cpu"), base_recipe=TINY, clip_recipe=ClipRecipe(batch=4), shard_size=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "HELD_OUT", HELD_OUT[:1])
        stages.render(sprites, 1)
    stages.fit_encoder()
    stages.encode()
    stages.train_clip(Budget(steps=2))
    stages.train_base(Budget(steps=1))
    return stages


@pytest.fixture
def make_stages(prepared: Stages, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Stages]:
    """Return a function that copies the prepared work folder."""

    def make() -> Stages:
        folder = tmp_path_factory.mktemp("copy")
        shutil.copytree(prepared.folder, folder, dirs_exist_ok=True)
        return replace(prepared, folder=folder)

    return make


def test_stages_make_a_working_pipeline(make_stages: Callable[[], Stages], tmp_path: Path) -> None:
    """A float16 StableDiffusionPipeline folder."""
    stages = make_stages()
    stages.train_decoder(Budget(steps=2))
    stages.assemble(tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    images = pipeline("a fox in the snow", num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 128, 128, 3)
    assert (
        load_file(tmp_path / "model/unet/diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype == torch.float16
    )
    assert "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q" in dict(pipeline.unet.named_modules())
    assert pipeline.scheduler.config["prediction_type"] == "v_prediction"
    assert Clip(tmp_path / "model-clip").embed_texts(["a fox"]).shape == (1, 128)


def test_card_omits_a_score_of_other_weights(make_stages: Callable[[], Stages], tmp_path: Path) -> None:
    """Further training invalidates the score."""
    stages, share = make_stages(), Share(0.75, 0.7, 0.8, 0.95)
    for unet, expected in (("0" * 12, "Not scored."), ("", "| Object | 75.0% |")):
        if not unet:
            unet = unet_digest(StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None).unet)
        save_score(Score(share, share, share, share, 0.6, 25.0, 21.5, 3.0, 25, 4, unet), stages.folder / "score.json")
        stages.assemble(tmp_path / "model")
        assert expected in (tmp_path / "model" / "README.md").read_text()


def test_unseen_pairs_are_excluded_from_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the CLIP model and of the UNet, for single objects and two side by side."""
    name, scene = min(UNSEEN)
    other_scene = next(phrase for phrase in SCENES if not {(name, phrase), ("fox", phrase)} & UNSEEN)
    other_name = next(entry.name for entry in OBJECTS if (entry.name, scene) not in UNSEEN)
    single, pair = Label(name, other_scene), Label("fox", other_scene, second_object=name)
    labels = [
        Label(name, scene),
        single,
        Label(other_name, scene, second_object=f"red {name}"),
        pair,
        Label(name, scene, "wet"),
    ]
    stages, trained_on = Stages(tmp_path, torch.device("cpu")), []
    for folder in (stages.renders, stages.latents):
        save_shard(Shard(torch.arange(5), labels), folder / "00000.safetensors")
    for function in ("train_clip", "train_base"):
        monkeypatch.setattr(f"toybox.stages.{function}", lambda shard, *_: trained_on.append(shard) or Progress())
    monkeypatch.setattr("toybox.stages.load_clip", lambda *_: None)
    stages.train_clip(Budget(steps=1))
    stages.train_base(Budget(steps=1))
    assert [shard.labels for shard in trained_on] == [[single, pair]] * 2
    assert [shard.values.tolist() for shard in trained_on] == [[1, 3]] * 2


def test_clip_batch_has_few_scenes_and_many_objects() -> None:
    """Three scenes by default."""
    labels = [Label(entry.name, phrase) for entry in OBJECTS for phrase in SCENES]
    images = Shard(torch.empty(len(labels), 0), labels)
    indices = sample_batch(group_by_scene(images), ClipRecipe(), np.random.default_rng(0))
    objects, scenes = ({getattr(labels[index], kind) for index in indices} for kind in ("object", "scene"))
    assert len(indices) == 128
    assert len(scenes) == 3
    assert len(objects) > len(indices) / 2


def test_resumed_training_gives_the_same_bits(make_stages: Callable[[], Stages]) -> None:
    """Two steps and two more equal four in one session, in weights, average and optimiser."""
    at_once, in_parts = make_stages(), make_stages()
    budget = Budget(steps=4)
    at_once.train_base(budget)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            in_parts.train_base(budget)
    in_parts.train_base(budget)
    expected, found = (load_file(stages.folder / "base.safetensors") for stages in (at_once, in_parts))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_non_finite_loss_raises_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    """The last checkpoint is kept and has no NaN."""
    model, checkpoint = torch.nn.Linear(2, 1), tmp_path / "model.safetensors"
    training = Training("model", {"model": model}, list(model.parameters()), checkpoint, learning_rate=0.1, batch=1)

    def loss_fn(step: int, used: float) -> torch.Tensor:
        return model(torch.ones(1, 2)).mean() * (1 if step < 3 else float("nan"))

    training.run(Budget(steps=3), loss_fn)
    good = checkpoint.read_bytes()
    with pytest.raises(ArithmeticError, match=r"model: the loss is nan at step 4; .* was not changed"):
        training.run(Budget(steps=4), loss_fn)
    assert checkpoint.read_bytes() == good


def stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Save a checkpoint after every step and raise KeyboardInterrupt after ``steps``."""
    import toybox.loop as loop

    def save_and_stop(path, modules, optimiser, progress) -> None:
        loop_save(path, modules, optimiser, progress)
        if progress.step == steps:
            raise KeyboardInterrupt

    loop_save = loop.save_checkpoint
    patch.setattr(loop, "save_checkpoint", save_and_stop)
    patch.setattr(loop, "SAVE_SECONDS", 0)


def test_loss_weights_are_higher_on_objects_and_neighbours() -> None:
    """Four times by default; uniform if the coverage is unknown."""
    coverage = torch.zeros(1, 6, 6, dtype=torch.uint8)
    coverage[0, 2, 2] = 200
    weights = loss_weights(coverage, 4.0)[0, 0]
    assert weights.mean() == pytest.approx(1)
    assert torch.allclose(weights[1:4, 1:4], 4 * weights[5, 5])
    assert (weights == weights[5, 5]).sum() == 36 - 9
    assert loss_weights(None, 4.0).unique().tolist() == [1.0]


def test_coverage_is_kept_with_latents(make_stages: Callable[[], Stages]) -> None:
    """From rendering to the UNet's training data."""
    stages = make_stages()
    images, latents = (load_shards(folder) for folder in (stages.renders, stages.latents))
    assert images.coverage is not None
    assert latents.coverage is not None
    assert latents.coverage.equal(images.coverage)
    assert latents.coverage.shape == (8, *latents.values.shape[-2:])


def test_encoder_computes_the_patch_code(sprites: Path) -> None:
    """Within about 1 %, with unit variance."""
    images = render_shard(sprites, 0, 8).values
    code = fit_patch_code(images, 12)
    vae = new_autoencoder(images)
    expected = ((to_patches(images) - code.mean) @ code.weights.T).view(8, 128 // PATCH, 128 // PATCH, 12)
    with torch.no_grad():
        posterior = vae.encode(normalize(images)).latent_dist
    assert torch.allclose(posterior.mean, expected.permute(0, 3, 1, 2), rtol=0.001, atol=0.02)
    assert posterior.std.max() < 0.02
    assert 0.9 < posterior.mean.std() < 1.1
    assert torch.allclose(encode(vae, images), posterior.mean, atol=0.15)


def test_decoder_training_raises_psnr_and_keeps_latents(make_stages: Callable[[], Stages], sprites: Path) -> None:
    """The encoder's weights are unchanged."""
    stages = make_stages()
    images = render_shard(sprites, 0, 8).values
    before = stages.load_vae()
    stages.train_decoder(Budget(steps=12))
    after = stages.load_vae()
    assert mean_psnr(after, images) > mean_psnr(before, images) + 1
    assert encode(after, images).equal(encode(before, images))


def test_noise_schedule_has_zero_terminal_snr() -> None:
    """Otherwise flat backgrounds would be grey."""
    assert new_scheduler().alphas_cumprod[-1] < 1e-6


def test_atomic_write_replaces_a_folder_and_survives_an_error(tmp_path: Path) -> None:
    """If the block raises, the previous folder is kept."""
    target = tmp_path / "model"
    for content in ("first", "second"):
        with atomic_path(target) as unfinished:
            unfinished.mkdir()
            (unfinished / "weights").write_text(content)
    with pytest.raises(RuntimeError), atomic_path(target) as unfinished:
        unfinished.mkdir()
        raise RuntimeError
    assert (target / "weights").read_text() == "second"
