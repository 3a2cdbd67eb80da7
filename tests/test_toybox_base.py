"""Tests of the embedded base model: size, files, tokenizer, generated images, and training on a new subject."""

import colorsys

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

import hra_diffusion as hra
from hra_diffusion.adapters import targets
from hra_diffusion.evaluation.clip import Clip, default_source
from hra_diffusion.models.sources import ASSETS
from training import config as configs
from training import samples
from training.data import class_images
from training.loop import train
from training.runs import progress
from training.runs.run_folder import Run

FOLDER = ASSETS / "toybox"
SEEDS, STEPS = 2, 8


@pytest.fixture(scope="module", autouse=True)
def few_denoising_steps():
    """Samples and class images take as many steps as the other images here: enough to be scored."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "SAMPLE_STEPS", STEPS)
        patch.setattr(class_images, "CLASS_IMAGE_STEPS", STEPS)
        yield


@pytest.fixture(scope="module")
def pipe():
    return hra.load_base("toybox", "cpu")


def generate(pipe, prompt, adapters=None):
    """Generate SEEDS images as one array (SEEDS, 128, 128, 3) in [0, 1]."""
    images = hra.generate(pipe, prompt, adapters or {}, seed=0, count=SEEDS, settings=hra.Settings(steps=STEPS))
    return np.stack([np.asarray(image) for image in images]) / 255


def centre(images):
    """Mean colour of the centre, where the object is."""
    return images[:, 48:100, 40:88].mean((0, 1, 2))


def corners(images):
    """Mean colour of the two upper corners, where the scene is."""
    return np.concatenate([images[:, :20, :20], images[:, :20, -20:]]).mean((0, 1, 2))


def hue(colour):
    return colorsys.rgb_to_hsv(*colour)[0]


def test_it_is_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 40e6
    assert not list(FOLDER.rglob("*.bin")) and not list(FOLDER.rglob("*.pkl"))


def test_plain_diffusers_loads_it():
    pipe = StableDiffusionPipeline.from_pretrained(FOLDER, safety_checker=None)
    assert pipe("a fox", num_inference_steps=1, output_type="np").images.shape == (1, 128, 128, 3)


def test_attention_layers_are_named_as_in_stable_diffusion(pipe):
    paths = targets.find_targets(pipe.unet)
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.to_k" in paths
    assert all(".transformer_blocks.0.attn" in path for path in paths)


@pytest.mark.parametrize("text", ["a sks toy", "Ein Hündchen 🐶 im Schnee!?", "", "supercalifragilistic " * 3])
def test_tokenizer_encodes_any_text(pipe, text):
    ids = pipe.tokenizer(text).input_ids
    assert ids[0] == pipe.tokenizer.bos_token_id and ids[-1] == pipe.tokenizer.eos_token_id
    if text.isascii() and text:
        assert pipe.tokenizer.decode(ids, skip_special_tokens=True).strip() == text.strip()


def test_trigger_words_are_single_tokens(pipe):
    assert all(len(pipe.tokenizer(word).input_ids) == 3 for word in ("sks", "qwe", "ohwx", "zwx"))


def test_scenes_match_the_prompt(pipe):
    snow, jungle = (generate(pipe, f"a photo of a panda {scene}") for scene in ("in the snow", "in the jungle"))
    assert corners(snow).mean() > corners(jungle).mean() + 0.15
    red, blue = (corners(generate(pipe, f"a photo of a panda on a {colour} background")) for colour in ("red", "blue"))
    assert red[0] > red[2] + 0.2 and blue[2] > blue[0] + 0.2


def test_objects_match_the_prompt(pipe):
    frog, strawberry, whale = (
        centre(generate(pipe, f"a photo of a {name} on a gray background")) for name in ("frog", "strawberry", "whale")
    )
    assert frog[1] > frog[2] + 0.05 and strawberry[0] > strawberry[1] + 0.15 and whale[2] > whale[0] + 0.1


ON_BLUE = "a photo of a sks toy on a blue background"


@pytest.fixture(scope="module")
def untrained(pipe):
    """Mean colour of the object that the base model generates for the subject's prompt."""
    return centre(generate(pipe, ON_BLUE))


@pytest.mark.parametrize("method", [pytest.param("lora", marks=pytest.mark.slow), "hra"])
def test_training_moves_images_towards_a_held_out_subject(pipe, untrained, tmp_path, method):
    """Five photos of an octopus move generated colours and the subject score towards it."""
    photos = sorted((ASSETS / "subjects" / "octopus").glob("*.png"))
    config = configs.parse(
        {"name": "Otto", "photos": photos, "class_noun": "toy", "method": method, "preset": "quick", "batch_size": 2,
         "device": "cpu", "steps": 24, "checkpoint_every": 12, "sample_every": 12,
         "sample_prompts": ["a {subject} on a blue background"]}
    )  # fmt: skip
    hra.load(pipe, train(config, tmp_path))
    run = progress.read(Run(tmp_path / "Otto"))
    rounds = list(range(0, config.steps + 1, config.sample_every))
    assert len(rounds) > 2 and sorted(run.scores) == rounds, "every round of samples is scored"
    assert run.scores[config.steps].subject > run.scores[0].subject, "the score rises"
    trained = centre(generate(pipe, ON_BLUE, {"Otto": 1.0}))
    hra.unload(pipe, "Otto")
    wanted = np.array([0.95, 0.6, 0.45])  # orange to pink
    assert np.abs(trained - wanted).mean() < np.abs(untrained - wanted).mean()
    assert trained[0] > trained[2] + 0.15


def test_training_on_real_photos_finishes(shared, tmp_path):
    """The base model can't generate realistic images, but a run completes."""
    config = configs.parse(
        {"name": "dog", "photos": [shared / "data" / "dreambooth" / "dog"], "class_noun": "dog", "device": "cpu",
         "preset": "quick", "steps": 3, "num_class_images": 1, "sample_prompts": []}
    )  # fmt: skip
    assert train(config, tmp_path).is_file()


def test_sample_subjects_are_small_and_credited():
    for subject in ("octopus", "robot"):
        photos = list((ASSETS / "subjects" / subject).glob("*.png"))
        assert len(photos) == 5 and all(Image.open(photo).size == (128, 128) for photo in photos)
        assert (ASSETS / "subjects" / subject / "NOTICE").is_file()


def sample_photos(name):
    return [Image.open(path) for path in sorted((ASSETS / "subjects" / name).glob("*.png"))]


def test_its_clip_model_distinguishes_subjects_and_prompts(pipe):
    clip = Clip(default_source("toybox"))
    own, other = (clip.embed_images(sample_photos(name)) for name in ("octopus", "robot"))
    assert (own @ own.T).min() > (own @ other.T).max(), "photos of one subject are more similar"
    images = hra.generate(pipe, "a photo of a taxi on the beach", seed=0, count=SEEDS)
    prompts = ["a taxi on the beach", "a taxi in the snow", "a fox on the beach"]
    similarity = clip.embed_images(images) @ clip.embed_texts([f"a photo of {prompt}" for prompt in prompts]).T
    assert (similarity.argmax(dim=1) == 0).all()
