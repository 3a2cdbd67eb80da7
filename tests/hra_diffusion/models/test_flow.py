"""Base models that are trained by flow matching: text, latents and pictures as their pipelines compute them."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import tiny_pipe
from diffusers import DDIMScheduler
from flow_pipes import FLOW_PIPES, tiny_sd3_pipe

from hra_diffusion.errors import BaseModelError, UserError
from hra_diffusion.generation.previews import DenoisingStep
from hra_diffusion.generation.requests import Settings
from hra_diffusion.generation.sampling import generate
from hra_diffusion.models import families, meta, sources
from hra_diffusion.models.loading import load_base

PROMPTS = ["a dog", "a teapot (in the snow)"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved base model of every family."""
    folder = tmp_path_factory.mktemp("bases")
    for kind, make in FLOW_PIPES.items():
        make().save_pretrained(folder / kind)
    return folder


@pytest.mark.parametrize("kind", FLOW_PIPES)
def test_captions_are_embedded_as_the_pipeline_embeds_prompts(kind):
    """What training caches gives the denoiser the same input as the pipeline's prompts."""
    pipe = FLOW_PIPES[kind]()
    family, calls = families.of(pipe), []
    pipe.transformer.register_forward_pre_hook(lambda m, args, kwargs: calls.append(kwargs), with_kwargs=True)
    side = families.default_side(pipe)
    latents = torch.randn(2, pipe.transformer.config.in_channels, *[side // families.latent_pixels(pipe)] * 2)
    with torch.no_grad():
        pipe(prompt=PROMPTS, width=side, height=side, num_inference_steps=1, guidance_scale=1, latents=latents,
             output_type="latent")  # fmt: skip
        text = family.embed(families.text_encoders(pipe), families.tokenize(pipe, PROMPTS))
        family.predict(pipe.transformer, latents, torch.full((2,), 1000.0), text, side)
    theirs, ours = calls
    tensors = [key for key, value in theirs.items() if isinstance(value, torch.Tensor)]
    assert {"hidden_states", "encoder_hidden_states", "timestep"} <= set(tensors)
    for key in tensors:
        torch.testing.assert_close(ours[key], theirs[key], msg=key, check_dtype=False)


@pytest.mark.parametrize("kind", FLOW_PIPES)
def test_pictures_are_those_of_the_pipeline(kind):
    pipe = FLOW_PIPES[kind]()
    side = families.default_side(pipe)
    steps: list[DenoisingStep] = []
    settings = Settings(3, guidance_scale=4.0, width=2 * side)
    (ours,) = generate(pipe, "a dog", seed=5, settings=settings, on_step=steps.append)
    positions = side // families.latent_pixels(pipe)
    noise = torch.randn(1, pipe.transformer.config.in_channels, positions, 2 * positions,
                        generator=torch.Generator().manual_seed(5))  # fmt: skip
    theirs = pipe(prompt="a dog", width=2 * side, height=side, num_inference_steps=3, guidance_scale=4.0, latents=noise)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs.images[0]))
    assert ours.info["hra_diffusion"]["scheduler"] == "FlowMatchEulerDiscreteScheduler"
    (last,) = steps[-1].decode()
    assert np.array_equal(np.asarray(last), np.asarray(ours))


@pytest.mark.parametrize("kind", FLOW_PIPES)
def test_a_folder_loads_and_its_shapes_are_known_without_weights(kind, folders):
    base = str(folders / kind)
    pipe, shapes = load_base(base, "cpu", "bfloat16"), meta.meta_pipeline(base)
    assert sources.base_version(base) == families.of(pipe).name
    for name in families.COMPONENTS:
        if own := getattr(pipe, name, None):
            expected = {key: tensor.shape for key, tensor in own.state_dict().items()}
            assert {key: tensor.shape for key, tensor in getattr(shapes, name).state_dict().items()} == expected
    assert all(parameter.device.type == "meta" for parameter in shapes.transformer.parameters())


@pytest.mark.filterwarnings("ignore:memory is predicted with the sizes of Stable Diffusion 3.5 medium")
def test_released_architectures_have_the_published_sizes():
    pipe = meta.meta_pipeline("stabilityai/stable-diffusion-3.5-medium", torch.bfloat16)
    positions = pipe.transformer.pos_embed.pos_embed.numel()
    assert sum(p.numel() for p in pipe.transformer.parameters()) + positions == pytest.approx(2.47e9, rel=0.005)
    assert sum(p.numel() for p in pipe.text_encoder_3.parameters()) == pytest.approx(4.76e9, rel=0.005)
    assert families.default_side(pipe) == 1024


def test_options_of_discrete_diffusion_are_refused(folders, tmp_path):
    base = str(folders / "sd3")
    with pytest.raises(BaseModelError, match="--prediction-type does not apply"):
        load_base(base, "cpu", prediction_type="epsilon")
    with pytest.raises(BaseModelError, match="--rescale-zero-snr does not apply"):
        load_base(base, "cpu", rescale_zero_snr=False)
    with pytest.raises(UserError, match="unknown scheduler 'euler-a'; use one of FlowMatchEulerDiscreteScheduler"):
        generate(tiny_sd3_pipe(), "a dog", settings=Settings(1, scheduler="euler-a"))
    tiny_sd3_pipe().save_pretrained(tmp_path)
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "DDIMScheduler"]}))
    with pytest.raises(BaseModelError, match="DDIMScheduler, is not FlowMatchEulerDiscreteScheduler"):
        load_base(str(tmp_path), "cpu")


def test_words_beyond_the_last_text_encoder_are_named():
    with pytest.warns(UserWarning, match="these words have no effect: “.*ruz”"):
        generate(tiny_sd3_pipe(), "a " + "very " * 60 + "ruz", settings=Settings(1))
    assert families.cut_off(tiny_sd3_pipe(t5=False), "a dog in the snow at night, a ruz").endswith("ruz"), "CLIP's 24"
    assert families.cut_off(tiny_sd3_pipe(), "a dog in the snow at night, thirty-six letters") == ""


def test_the_shift_of_a_size_is_that_of_the_scheduler():
    """μ is linear in the number of 2 × 2 patches."""
    fixed = families.noise_process(tiny_sd3_pipe())
    assert fixed.shift_for(64, 64) == 3.0 and fixed.timesteps == 1000
    by_size = families.noise_process(tiny_sd3_pipe(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15))
    assert by_size.shift_for(32, 32) == pytest.approx(math.exp(0.5))
    assert by_size.shift_for(64, 256) == pytest.approx(math.exp(1.15))


def test_a_pipeline_is_known_by_the_classes_it_is_derived_from():
    own = type("Own", (type(tiny_sd3_pipe()),), {})
    pipe = tiny_sd3_pipe()
    pipe.__class__ = own
    assert families.of(pipe).name == "sd3" and families.of(tiny_pipe()).name == "sd"
