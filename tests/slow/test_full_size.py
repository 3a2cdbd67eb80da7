"""Stable Diffusion at full size with random weights: every format, other loaders, short runs. Minutes, not seconds:

    pytest -m slow tests/slow

Needs about 12 GiB of memory for version 1 and 20 GiB for XL, which runs in bfloat16 except in the comparisons.
"""

import gc
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SHARED, relative, save_photos, stir
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from flow_pipes import tiny_qwen3, tiny_qwen3_tokenizer
from real_photos import SETTINGS, phone_photos, train_with_a_stop
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from hra_diffusion import generate, interop, load_base, pipeline
from hra_diffusion.adapters import attachment
from hra_diffusion.adapters.methods import REPRESENTATIVE
from hra_diffusion.generation.requests import Settings
from hra_diffusion.interop import checkpoint
from hra_diffusion.models import families
from hra_diffusion.models.devices import computes_bfloat16
from hra_diffusion.models.families.architectures import FLUX2_KLEIN, SD1, SD2, SD35, SDXL
from hra_diffusion.models.meta import meta_pipeline
from training import config as configs
from training.loop import train
from training.session.model import Denoiser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared (CLIP's vocabulary, two public adapters)"),
]
EXACT = 1e-4
VOCABULARY = SHARED / "data" / "clip_tokenizer"


def random_pipe(architecture, dtype=torch.float32):
    """A released architecture with random weights and CLIP's own vocabulary."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        unet, vae, encoders = architecture.build_denoiser(), architecture.build_vae(), architecture.build_encoders()
    finally:
        torch.set_default_dtype(torch.float32)
    tokenizers = [
        CLIPTokenizer.from_pretrained(str(VOCABULARY), pad_token=pad, model_max_length=77) for pad in architecture.pads
    ]
    scheduler = {"DDIMScheduler": DDIMScheduler, "EulerDiscreteScheduler": EulerDiscreteScheduler}[
        architecture.scheduler[0]
    ]
    parts = {"unet": unet.eval(), "vae": vae.eval(), "text_encoder": encoders[0].eval(), "tokenizer": tokenizers[0],
             "scheduler": scheduler(**architecture.scheduler[1])}  # fmt: skip
    if architecture is SDXL:
        pipe = StableDiffusionXLPipeline(
            **parts, text_encoder_2=encoders[1].eval(), tokenizer_2=tokenizers[1], add_watermarker=False
        )
    else:
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    pipe.base_name = architecture.name
    return pipe


def outputs(pipe, side=16):
    """The UNet's output for a prompt, encoded by the text encoders, and fixed noise."""
    family = families.of(pipe)
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        text = family.embed(families.text_encoders(pipe), families.tokenize(pipe, ["a sks dog in the snow"]))
        return family.predict(pipe.unet, noise, torch.tensor([500]), text, 8 * side)


@pytest.fixture(scope="module")
def sd1():
    return random_pipe(SD1)


@pytest.fixture(scope="module")
def xl():
    return random_pipe(SDXL, torch.bfloat16)  # initialising 3.5 G parameters takes a minute


@pytest.fixture(autouse=True)
def tidy():
    yield
    gc.collect()


def put_on(pipe, method):
    for name, model in pipeline.components(pipe).items():
        attachment.attach(model, method, {"rank": 4}, name=method, seed=len(name))
        stir(attachment.adapter_parameters(model, method).values())
    pipeline.activate(pipe, {method: 1.0})


def diffusers_outputs(pipe, path):
    """The same pipeline, without our adapters, through diffusers' loader; left as it was."""
    pipe.load_lora_weights(str(path))
    theirs = outputs(pipe)
    pipe.unload_lora_weights()
    return theirs


@pytest.mark.parametrize(("method", "format"), [("hra", "kohya"), ("hoft", "diffusers"), ("shoft", "diffusers")])
def test_sd15_exports_load_in_diffusers_exactly(sd1, method, format, tmp_path):
    put_on(sd1, method)
    ours = outputs(sd1)
    done = interop.export(sd1, method, format, tmp_path / "a.safetensors")
    pipeline.unload(sd1, method)
    assert relative(diffusers_outputs(sd1, done.path), ours) < EXACT and relative(outputs(sd1), ours) > 10 * EXACT


def test_sd15_merged_single_file_opens_without_a_network_here_and_in_diffusers(sd1, tmp_path):
    """Through load_base: recognised by its tensors, with the vocabulary beside it."""
    put_on(sd1, "hra")
    ours = outputs(sd1)
    done = interop.export(sd1, "hra", "merged", tmp_path / "merged.safetensors")
    pipeline.unload(sd1, "hra")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((VOCABULARY / name).read_bytes())
    loaded = load_base(str(done.path), "cpu")
    assert relative(outputs(loaded), ours) < EXACT
    assert loaded.tokenizer("a sks dog").input_ids == sd1.tokenizer("a sks dog").input_ids


@pytest.mark.parametrize("file", ["catundchat_sd15_attention_processor", "cloneofsimo_analog_svd_rank4"])
def test_the_real_files_are_the_plain_formula(sd1, file, tmp_path):
    """W + up · down on the same modules gives the same UNet outputs."""
    place, report = interop.import_adapter(
        sd1, SHARED / "data" / "adapters" / f"{file}.safetensors", tmp_path, "Stranger"
    )
    assert report.used == report.keys
    info = pipeline.load(sd1, place)
    ours, factors = outputs(sd1), load_file(place)
    pipeline.unload(sd1, info.name)
    plain = {}
    with torch.no_grad():
        for component, probes in info.fingerprint.items():
            for path in probes:
                weight = getattr(sd1, component).get_submodule(path).weight
                plain[weight] = weight.clone()
                weight += (factors[f"{component}.{path}.up"] @ factors[f"{component}.{path}.down"]).view_as(weight)
        wanted = outputs(sd1)
        for weight, before in plain.items():
            weight.copy_(before)
    assert relative(ours, wanted) < EXACT and relative(outputs(sd1), wanted) > EXACT


def test_sd15_trains_on_real_photos_resumes_exactly_and_exports(sd1, tmp_path):
    """Buckets, masks, captions and validation, in float32. On a busy core a step takes 8 s, a validation a minute."""
    photos = str(phone_photos(tmp_path / "dog", 512))
    sd1.save_pretrained(tmp_path / "base")
    changes = {"photos": [photos], "base": str(tmp_path / "base"), "resolution": 256, "learning_rate": 1e-2}
    pipeline.load(sd1, train_with_a_stop(configs.parse(SETTINGS | changes), tmp_path))
    ours = outputs(sd1)
    files = [interop.export(sd1, "Rex", form, tmp_path / f"{form}.safetensors").path for form in ("kohya", "diffusers")]
    pipeline.unload(sd1, "Rex")
    assert relative(outputs(sd1), ours) > 10 * EXACT
    for file in files:
        assert relative(diffusers_outputs(sd1, file), ours) < EXACT


def short_run(build, tmp_path, **changes):
    """Train, load and draw; the largest pipeline that ``build`` makes fits into memory once."""
    (tmp_path / "photos").mkdir()
    save_photos(tmp_path / "photos", 2)
    build().save_pretrained(tmp_path / "base")
    gc.collect()
    settings = {
        "name": "Rex",
        "photos": [str(tmp_path / "photos")],
        "class_noun": "dog",
        "base": str(tmp_path / "base"),
        "device": "cpu",
        "dtype": "bfloat16",
        "steps": 3,
        "prior_loss_weight": 0,
        "resolution": 256,
        "sample_prompts": [],
        "gradient_checkpointing": True,
    } | changes
    adapter = train(configs.parse(settings), tmp_path / "out")
    gc.collect()
    again = load_base(str(tmp_path / "base"), "cpu", settings["dtype"])
    pipeline.load(again, adapter)
    side = settings["resolution"]
    (picture,) = generate(again, "a sks dog", settings=Settings(steps=2, width=side, height=side))
    assert np.asarray(picture).std() > 0
    return json.loads((tmp_path / "out" / "Rex" / "state.json").read_text())


@pytest.mark.parametrize("architecture", [SD1, SD2], ids=["sd1", "sd2"])
def test_three_steps_from_photos_to_a_picture(architecture, tmp_path):
    assert short_run(lambda: random_pipe(architecture, torch.bfloat16), tmp_path)["status"] == "finished"


def test_three_steps_of_xl(xl, tmp_path):
    assert short_run(lambda: xl, tmp_path)["status"] == "finished"


def random_sd35(dtype):
    """Stable Diffusion 3.5 medium with random weights, without T5."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        transformer, vae = SD35.build_denoiser(), SD35.build_vae()
        encoders = replace(SD35, encoders=SD35.encoders[:2]).build_encoders()
    finally:
        torch.set_default_dtype(torch.float32)
    parts = {"transformer": transformer, "vae": vae, "text_encoder_3": None, "tokenizer_3": None}
    for number, encoder, pad in zip(("", "_2"), encoders, SD35.pads, strict=False):
        tokenizer = CLIPTokenizer.from_pretrained(str(VOCABULARY), pad_token=pad, model_max_length=77)
        parts |= {f"text_encoder{number}": encoder.eval(), f"tokenizer{number}": tokenizer}
    return StableDiffusion3Pipeline(**parts, scheduler=FlowMatchEulerDiscreteScheduler(**SD35.scheduler[1]))


def test_two_steps_of_sd35_medium(tmp_path):
    """In float32 where bfloat16 is emulated: 14 GiB, about ten minutes."""
    dtype = "bfloat16" if computes_bfloat16("cpu") else "float32"
    changes = {"dtype": dtype, "steps": 2, "resolution": 128, "train_text_encoder": False, "method": "hra"}
    assert short_run(lambda: random_sd35(getattr(torch, dtype)), tmp_path, **changes)["status"] == "finished"


def random_klein():
    """FLUX.2 klein with random weights in bfloat16, but Qwen3 as wide as it is, and thin."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        transformer, vae = FLUX2_KLEIN.build_denoiser(), FLUX2_KLEIN.build_vae()
    finally:
        torch.set_default_dtype(torch.float32)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**FLUX2_KLEIN.scheduler[1]), vae=vae.eval(), transformer=transformer,
        text_encoder=tiny_qwen3(hidden_size=2560), tokenizer=tiny_qwen3_tokenizer(),
    )  # fmt: skip


def test_two_steps_of_flux2_klein_with_nf4_weights(tmp_path):
    """In float32 until they are quantised: 21 GiB, about twenty minutes, since all 512 text tokens are read."""
    changes = {"dtype": "float32", "base_weights": "nf4", "steps": 2, "resolution": 128, "train_text_encoder": False}
    assert short_run(random_klein, tmp_path, **changes, method="hra")["status"] == "finished"


def test_an_xl_single_file_is_recognised_and_opens(xl, tmp_path):
    save_file(checkpoint.state_dict(xl), tmp_path / "xl.safetensors")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((VOCABULARY / name).read_bytes())
    states = {name: xl.components[name].state_dict() for name in ("unet", "vae", "text_encoder", "text_encoder_2")}
    loaded = load_base(str(tmp_path / "xl.safetensors"), "cpu", "bfloat16")
    for name, state in states.items():
        assert all(torch.equal(value, state[key]) for key, value in getattr(loaded, name).state_dict().items())


def test_xl_exports_load_in_diffusers_exactly(xl, tmp_path):
    """HRA under kohya's names for XL, SHOFT as a DoRA; float32 throughout, two text encoders. Last: it widens XL."""
    xl.to(torch.float32)
    for method, format in (("hra", "kohya"), ("shoft", "diffusers")):
        put_on(xl, method)
        ours = outputs(xl)
        done = interop.export(xl, method, format, tmp_path / f"{method}.safetensors")
        pipeline.unload(xl, method)
        assert relative(diffusers_outputs(xl, done.path), ours) < EXACT


@pytest.mark.parametrize("method", REPRESENTATIVE)
def test_a_training_step_of_flux2_klein_without_weights(method):
    """Shapes alone, on the meta device, of 768 × 512 pixels: with its text encoder it takes 16 GB in bfloat16."""
    pipe = meta_pipeline("black-forest-labs/FLUX.2-klein-base-4B", torch.bfloat16)
    attachment.attach(pipe.transformer, method, {"rank": 4}, name="Rex")
    with torch.device("meta"), torch.no_grad():
        ids, latents, times = torch.zeros(2, 2, 512, dtype=torch.long), torch.empty(2, 128, 32, 48), torch.empty(2)
        text = families.of(pipe).embed(families.text_encoders(pipe), ids)
    assert text["hidden"].shape == (2, 512, 7680)
    prediction = Denoiser(pipe, False)(latents, times, text)
    assert prediction.shape == latents.shape
    prediction.square().mean().backward()
    parameters = attachment.adapter_parameters(pipe.transformer, "Rex")
    assert {path.partition(".")[0] for path in parameters} == {"transformer_blocks", "single_transformer_blocks"}
    assert all(parameter.grad.shape == parameter.shape for parameter in parameters.values())
