"""Every family in generation and training, compared with diffusers' pipelines."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import PIPES, StopAfter, relative, save_photos, tiny_xl_pipe
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from safetensors.torch import load_file

from hra_diffusion import pipeline
from hra_diffusion.adapters import attachment
from hra_diffusion.errors import UserError
from hra_diffusion.generation.png import read_png, save_png
from hra_diffusion.generation.requests import Request, Settings
from hra_diffusion.generation.sampling import generate, generate_batch
from hra_diffusion.models import families, loading
from training import config as configs
from training.data.latent_cache import encode
from training.loop import train
from training.session.model import Denoiser

SETTINGS = Settings(steps=3, guidance_scale=4.0, width=16, height=16)


def generate_with_diffusers(pipe, prompt, negative, seed, **more):
    """Generate an image with the pipeline's own call."""
    generator = torch.Generator().manual_seed(seed)
    before = pipe.scheduler
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(before.config, timestep_spacing="trailing")
    image = pipe(
        prompt,
        negative_prompt=negative,
        generator=generator,
        num_inference_steps=3,
        guidance_scale=4.0,
        width=16,
        height=16,
        **more,
    ).images[0]
    pipe.scheduler = before
    return np.asarray(image, dtype=float)


@pytest.mark.parametrize("kind", PIPES)
@pytest.mark.parametrize("negative", [None, "blurry"])
def test_images_equal_those_of_diffusers(kind, negative):
    """Also for an empty negative prompt, which SDXL encodes as zeros."""
    pipe = PIPES[kind]()
    (ours,) = generate(pipe, "a dog", {}, seed=3, settings=SETTINGS, negative_prompt=negative or "")
    assert np.abs(np.asarray(ours, dtype=float) - generate_with_diffusers(pipe, "a dog", negative, 3)).max() <= 1


def test_size_conditioning_equals_diffusers_and_is_saved_in_the_image(tmp_path):
    pipe = PIPES["sdxl"]()
    sizes = {"original_size": (512, 384), "crops_coords_top_left": (0, 300), "target_size": (1024, 768)}
    plain, other = (generate(pipe, "a dog", {}, 3, settings=replace(SETTINGS, **given))[0] for given in ({}, sizes))
    expected = generate_with_diffusers(pipe, "a dog", None, 3, **sizes)
    assert np.abs(np.asarray(other, dtype=float) - expected).max() <= 1
    assert np.abs(np.asarray(plain, dtype=float) - expected).max() > 1
    made = read_png(save_png(other, tmp_path / "a.png"))
    assert {name: tuple(made[name]) for name in sizes} == sizes
    made = read_png(save_png(plain, tmp_path / "b.png"))
    assert (made["original_size"], made["crops_coords_top_left"]) == ([16, 16], [0, 0])
    with pytest.raises(UserError, match="target_size must be two numbers from 1 up, not 0 and 5"):
        generate(pipe, "a dog", settings=Settings(target_size=(0, 5)))
    for kind in ("sd", "sd2"):
        with pytest.raises(UserError, match="is not conditioned on sizes; only SDXL takes original_size"):
            generate(PIPES[kind](), "a dog", settings=Settings(original_size=(512, 512)))
        (image,) = generate(PIPES[kind](), "a dog", {}, settings=replace(SETTINGS, steps=1))
        assert "original_size" not in image.info["hra_diffusion"]


@pytest.mark.parametrize("kind", PIPES)
def test_an_image_does_not_depend_on_its_batch(kind):
    pipe = PIPES[kind]()
    for number, model in enumerate(pipeline.components(pipe).values()):
        attachment.attach(model, "hoft", {"rank": 2}, name="a", seed=number)
    requests = [
        Request("a dog", 1, (("a", 1.0),)),
        Request("a cat", 2, (), "blurry"),
        Request("a cat", 2, ()),
    ]
    together = generate_batch(pipe, requests, SETTINGS)
    alone = [generate_batch(pipe, [request], SETTINGS)[0] for request in requests]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).max() <= 1


@pytest.mark.parametrize("kind", PIPES)
def test_embeddings_equal_those_of_the_pipeline(kind):
    pipe, captions = PIPES[kind](), ["a dog", "a photo of a teapot in the snow"]
    with torch.no_grad():
        text = families.of(pipe).embed(families.text_encoders(pipe), families.tokenize(pipe, captions))
        encoded = pipe.encode_prompt(captions, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    references = [encoded[0], encoded[2]] if kind == "sdxl" else [encoded[0]]
    for ours, expected in zip(text.values(), references, strict=True):
        assert relative(ours, expected) < 1e-6


@pytest.mark.parametrize("kind", PIPES)
@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_every_adapter_parameter_gets_a_gradient(kind, train_text_encoder, tmp_path):
    """A frozen and a trained text encoder give the same prediction."""
    pipe = PIPES[kind]()
    attachment.attach(pipe.unet, "hra", {"rank": 2}, name="a")
    if train_text_encoder:
        for name, paths in families.text_targets(pipe).items():
            attachment.attach(getattr(pipe, name), "hra", {"rank": 2}, name="a", targets=paths)
    photo = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    examples = encode(pipe, [Image.fromarray(photo)], ["a sks dog"], flip=False, embed=not train_text_encoder)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(pipe, train_text_encoder)
    prediction = denoiser(noise, torch.tensor([10]), examples.text)
    embedded = encode(pipe, [Image.fromarray(photo)], ["a sks dog"], flip=False, embed=True).text
    assert relative(prediction, Denoiser(pipe, False)(noise, torch.tensor([10]), embedded)) < 1e-5
    prediction.square().mean().backward()
    for model in pipeline.components(pipe).values():
        if "a" in attachment.adapter_names(model):
            assert all(p.grad.abs().sum() > 0 for p in attachment.adapter_parameters(model, "a").values())


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
def test_a_resumed_run_equals_an_uninterrupted_one(kind, tmp_path):
    """With trained text encoders."""
    PIPES[kind]().save_pretrained(tmp_path / "base")
    (tmp_path / "photos").mkdir()
    save_photos(tmp_path / "photos", 2)

    settings = configs.parse(
        {
            "name": "Rex",
            "photos": [str(tmp_path / "photos")],
            "class_noun": "dog",
            "base": str(tmp_path / "base"),
            "device": "cpu",
            "resolution": 64,
            "steps": 2,
            "batch_size": 1,
            "num_class_images": 1,
            "checkpoint_every": 1,
            "sample_every": 0,
            "sample_prompts": ["a {subject}"],
            "train_text_encoder": True,
            "gradient_checkpointing": True,
        }
    )
    adapter = train(settings, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "half", [StopAfter(1)])
    again = train(settings, tmp_path / "half", resume=True)
    whole, halves = load_file(adapter), load_file(again)
    assert all(torch.equal(value, halves[key]) for key, value in whole.items())
    pipe = loading.load_base(str(tmp_path / "base"), "cpu")
    info = pipeline.load(pipe, adapter)
    assert set(info.fingerprint) == set(pipeline.components(pipe))
    (image,) = generate(pipe, "a sks dog", settings=SETTINGS)
    assert image.size == (16, 16)


def test_sdxls_float16_vae_encodes_in_float32(tmp_path):
    """Its activations overflow in float16. It is in float16 again afterwards."""
    pipe = tiny_xl_pipe()
    with torch.no_grad():
        pipe.vae.encoder.conv_in.weight *= 3e4
        pipe.vae.encoder.conv_norm_out.weight *= 1e-1
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    expected = encode(pipe, [image], ["a dog"], flip=False, embed=True).mean
    pipe.vae.half()
    found = encode(pipe, [image], ["a dog"], flip=False, embed=True).mean
    assert pipe.vae.dtype == torch.float16
    assert found.isfinite().all() and relative(found, expected) < 1e-2
