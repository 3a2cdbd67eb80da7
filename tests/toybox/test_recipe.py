"""Tests of the whole recipe with small networks and a few steps, from sprites to a pipeline."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from hra_diffusion.evaluation.clip import Clip
from hra_diffusion.files import atomic_path
from toybox.autoencoder import encode, measure, new_autoencoder, to_signal
from toybox.base import BaseRecipe, new_scheduler, place_weights
from toybox.clip import ClipRecipe, group_by_scene, sample_batch
from toybox.loop import Budget, Progress, Training
from toybox.patches import PATCH, fit_patch_code, to_patches
from toybox.recipe import Workshop
from toybox.scenes import SCENES
from toybox.score import Score, Share, digest, save_score
from toybox.shards import Shard, load_shards, render_shard, save_shard
from toybox.labels import Label, UNSEEN
from toybox.objects import OBJECTS

TINY = BaseRecipe(channels=(32, 32, 64), batch=4)


@pytest.fixture(scope="module")
def make_workshop(sprites: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Workshop]:
    """Makes fresh workshops that have pictures, an encoder, latents and a CLIP pair."""

    def make() -> Workshop:
        folder = tmp_path_factory.mktemp("work")
        workshop = Workshop(
            folder, torch.device("cpu"), base_recipe=TINY, clip_recipe=ClipRecipe(batch=4), shard_size=8
        )
        workshop.render(sprites, 1)
        workshop.make_encoder()
        workshop.encode()
        workshop.make_clip(Budget(steps=2))
        return workshop

    return make


def test_recipe_makes_a_working_pipeline(make_workshop: Callable[[], Workshop], tmp_path: Path) -> None:
    """A float16 StableDiffusionPipeline folder."""
    workshop = make_workshop()
    workshop.make_base(Budget(steps=2))
    workshop.make_decoder(Budget(steps=2))
    workshop.assemble(tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    pictures = pipeline("a fox in the snow", num_inference_steps=2, output_type="np").images
    assert pictures.shape == (1, 128, 128, 3)
    assert (
        load_file(tmp_path / "model/unet/diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype == torch.float16
    )
    assert "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q" in dict(pipeline.unet.named_modules())
    assert pipeline.scheduler.config["prediction_type"] == "v_prediction"
    assert Clip(tmp_path / "model-clip").embed_texts(["a fox"]).shape == (1, 128)


def test_card_omits_a_score_of_other_weights(make_workshop: Callable[[], Workshop], tmp_path: Path) -> None:
    """Further training invalidates the score."""
    workshop, share = make_workshop(), Share(0.75, 0.7, 0.8, 0.95)
    workshop.make_base(Budget(steps=1))
    for unet, told in (("0" * 12, "Not scored."), ("", "| Thing right | 75.0% |")):
        if not unet:
            unet = digest(StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None).unet)
        save_score(Score(share, share, share, share, 0.6, 25.0, 21.5, 3.0, 25, 4, unet), workshop.folder / "score.json")
        workshop.assemble(tmp_path / "model")
        assert told in (tmp_path / "model" / "README.md").read_text()


def test_unseen_pairs_are_excluded_from_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the CLIP model and of the UNet, for single things and two side by side."""
    thing, scene = min(UNSEEN)
    elsewhere = next(phrase for phrase in SCENES if not {(thing, phrase), ("fox", phrase)} & UNSEEN)
    here = next(other.name for other in OBJECTS if (other.name, scene) not in UNSEEN)
    allowed, company = Label(thing, elsewhere), Label("fox", elsewhere, second_object=thing)
    labels = [
        Label(thing, scene),
        allowed,
        Label(here, scene, second_object=f"red {thing}"),
        company,
        Label(thing, scene, "wet"),
    ]
    workshop, seen = Workshop(tmp_path, torch.device("cpu")), []
    for folder in (workshop.renders, workshop.latents):
        save_shard(Shard(torch.arange(5), labels), folder / "00000.safetensors")
    for name in ("train_clip", "train_base"):
        monkeypatch.setattr(f"toybox.recipe.{name}", lambda shard, *_: seen.append(shard) or Progress())
    monkeypatch.setattr("toybox.recipe.load_clip", lambda *_: None)
    workshop.make_clip(Budget(steps=1))
    workshop.make_base(Budget(steps=1))
    assert [shard.labels for shard in seen] == [[allowed, company]] * 2
    assert [shard.values.tolist() for shard in seen] == [[1, 3]] * 2


def test_clip_batch_has_few_scenes_and_many_things() -> None:
    """Three scenes by default."""
    labels = [Label(thing.name, phrase) for thing in OBJECTS for phrase in SCENES]
    pictures = Shard(torch.empty(len(labels), 0), labels)
    chosen = sample_batch(group_by_scene(pictures), ClipRecipe(), np.random.default_rng(0))
    things, scenes = ({getattr(labels[number], kind) for number in chosen} for kind in ("thing", "scene"))
    assert len(chosen) == 128
    assert len(scenes) == 3
    assert len(things) > len(chosen) / 2


def test_resumed_training_gives_the_same_bits(make_workshop: Callable[[], Workshop]) -> None:
    """Two steps and two more equal four in one session, in weights, average and optimiser."""
    at_once, in_parts = make_workshop(), make_workshop()
    budget = Budget(steps=4)
    at_once.make_base(budget)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            in_parts.make_base(budget)
    in_parts.make_base(budget)
    expected, found = (load_file(workshop.folder / "base.safetensors") for workshop in (at_once, in_parts))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_non_finite_loss_raises_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    """The last checkpoint is kept and has no NaN."""
    model, checkpoint = torch.nn.Linear(2, 1), tmp_path / "model.safetensors"
    training = Training("model", {"model": model}, list(model.parameters()), checkpoint, peak_rate=0.1, batch=1)

    def loss_of(step: int, spent: float) -> torch.Tensor:
        return model(torch.ones(1, 2)).mean() * (1 if step < 3 else float("nan"))

    training.run(Budget(steps=3), loss_of)
    good = checkpoint.read_bytes()
    with pytest.raises(ArithmeticError, match=r"model: the loss is nan at step 4; .* was not changed"):
        training.run(Budget(steps=4), loss_of)
    assert checkpoint.read_bytes() == good


def stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Save at every step, and stop as Ctrl-C would when `steps` are saved."""
    import toybox.loop as loop

    def save_and_stop(path, modules, optimiser, progress) -> None:
        loop_save(path, modules, optimiser, progress)
        if progress.step == steps:
            raise KeyboardInterrupt

    loop_save = loop.save_checkpoint
    patch.setattr(loop, "save_checkpoint", save_and_stop)
    patch.setattr(loop, "SAVE_SECONDS", 0)


def test_loss_weights_are_higher_on_things_and_neighbours() -> None:
    """Four times by default; uniform if covers are unknown."""
    covers = torch.zeros(1, 6, 6, dtype=torch.uint8)
    covers[0, 2, 2] = 200
    weights = place_weights(covers, 4.0)[0, 0]
    assert weights.mean() == pytest.approx(1)
    assert torch.allclose(weights[1:4, 1:4], 4 * weights[5, 5])
    assert (weights == weights[5, 5]).sum() == 36 - 9
    assert place_weights(None, 4.0).unique().tolist() == [1.0]


def test_covers_are_kept_with_latents(make_workshop: Callable[[], Workshop]) -> None:
    """From rendering to the UNet's training data."""
    workshop = make_workshop()
    pictures, latents = (load_shards(folder) for folder in (workshop.renders, workshop.latents))
    assert pictures.covers is not None
    assert latents.covers is not None
    assert latents.covers.equal(pictures.covers)
    assert latents.covers.shape == (8, *latents.values.shape[-2:])


def test_encoder_computes_the_patch_code(sprites: Path) -> None:
    """Within about 1 %, with unit variance."""
    pictures = render_shard(sprites, 0, 8).values
    code = fit_patch_code(pictures, 12)
    vae = new_autoencoder(pictures)
    expected = ((to_patches(pictures) - code.mean) @ code.weights.T).view(8, 128 // PATCH, 128 // PATCH, 12)
    with torch.no_grad():
        posterior = vae.encode(to_signal(pictures)).latent_dist
    assert torch.allclose(posterior.mean, expected.permute(0, 3, 1, 2), rtol=0.001, atol=0.02)
    assert posterior.std.max() < 0.02
    assert 0.9 < posterior.mean.std() < 1.1
    assert torch.allclose(encode(vae, pictures), posterior.mean, atol=0.15)


def test_decoder_training_raises_psnr_and_keeps_latents(make_workshop: Callable[[], Workshop], sprites: Path) -> None:
    """The encoder's weights are unchanged."""
    workshop = make_workshop()
    workshop.make_base(Budget(steps=1))
    pictures = render_shard(sprites, 0, 8).values
    before = workshop.load_vae()
    workshop.make_decoder(Budget(steps=24))
    after = workshop.load_vae()
    assert measure(after, pictures) > measure(before, pictures) + 1
    assert encode(after, pictures).equal(encode(before, pictures))


def test_noise_schedule_has_zero_terminal_snr() -> None:
    """Otherwise flat backgrounds would be grey."""
    assert new_scheduler().alphas_cumprod[-1] < 1e-6


def test_writing_whole_replaces_a_folder_and_survives_a_crash(tmp_path: Path) -> None:
    """A block that fails leaves what was there before."""
    target = tmp_path / "model"
    for content in ("first", "second"):
        with atomic_path(target) as unfinished:
            unfinished.mkdir()
            (unfinished / "weights").write_text(content)
    with pytest.raises(RuntimeError), atomic_path(target) as unfinished:
        unfinished.mkdir()
        raise RuntimeError
    assert (target / "weights").read_text() == "second"
