"""FLUX.2 klein: what it does not share with the other families that are trained by flow matching."""

import json

import numpy as np
import pytest
import torch
from conftest import relative, stir
from flow_pipes import tiny_flux2_pipe
from PIL import Image
from safetensors.torch import save_file

from hra_diffusion import interop
from hra_diffusion.adapters import attachment, quantization
from hra_diffusion.adapters.targets import find_targets
from hra_diffusion.errors import BaseModelError, Note, UserError
from hra_diffusion.generation.requests import Settings, complete_settings
from hra_diffusion.generation.sampling import generate
from hra_diffusion.models import families, hub, sources
from hra_diffusion.models.families import flux2
from hra_diffusion.models.families.architectures import FLUX2_KLEIN, on_meta
from hra_diffusion.models.loading import load_base
from training.data.latent_cache import encode

HUB_ID = "black-forest-labs/FLUX.2-klein-base-4B"


@pytest.fixture(scope="module")
def pipe():
    return tiny_flux2_pipe()


def test_photos_are_encoded_as_the_pipeline_encodes_given_images(pipe):
    """Squares of latents, normalised, without sampling; not square, and mirrored."""
    photo = np.random.default_rng(0).integers(0, 255, (16, 32, 3), dtype=np.uint8)
    cache = encode(pipe, [Image.fromarray(photo)], ["a dog"], flip=True, embed=True)
    for view, pixels in enumerate((photo, photo[:, ::-1].copy())):
        image = torch.from_numpy(pixels / np.float32(127.5) - 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = pipe._encode_vae_image(image, None)[0]
        torch.testing.assert_close(cache.mean[0, view], expected)
    assert cache.mean.shape == (1, 2, 16, 4, 8) and not cache.std.any()


def test_photos_are_encoded_in_float16():
    """The VAE's configuration has no ``force_upcast``, unlike those of Stable Diffusion."""
    cache = encode(tiny_flux2_pipe().to(dtype=torch.float16), [Image.new("RGB", (16, 16))], ["a"], False, False)
    assert cache.mean.isfinite().all()


def test_the_words_that_are_cut_off_are_those_the_encoder_does_not_read(pipe):
    """The chat template takes tokens before the prompt; one letter is one token here."""
    words = " ".join("abcdefgh"[i % 8] for i in range(300))
    cut = families.cut_off(pipe, words)
    ids, mask = families.tokenize(pipe, [words])[0]
    read = pipe.tokenizer.decode(ids)
    assert mask.all() and read.endswith(words.removesuffix(cut).strip()) and 0 < len(cut) < 100
    short = families.tokenize(pipe, ["a dog", ""])
    lengths = short[:, 1].sum(dim=1)
    assert pipe.tokenizer.decode(short[0, 0, : lengths[0]]) == (
        "<|im_start|>user\na dog<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert (short[1, 0, lengths[1] :] == pipe.tokenizer.pad_token_id).all() and short.shape[1:] == (2, flux2.TOKENS)


def test_a_negative_prompt_guides_away_from_it(pipe):
    """The pipeline's call takes only its embedding."""
    few = Settings(2, guidance_scale=4.0)
    (plain,), (other,) = (generate(pipe, "a dog", settings=few, negative_prompt=text) for text in ("", "blurry"))
    embeddings = pipe.encode_prompt("blurry")[0]
    noise = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    (theirs,) = pipe(
        prompt="a dog", negative_prompt_embeds=embeddings, width=16, height=16, num_inference_steps=2,
        guidance_scale=4.0, latents=noise,
    ).images  # fmt: skip
    assert np.array_equal(np.asarray(other), np.asarray(theirs)) and not np.array_equal(other, plain)


def test_the_distilled_model_draws_without_guidance(tmp_path):
    tiny_flux2_pipe(is_distilled=True).save_pretrained(tmp_path)
    pipe = load_base(str(tmp_path), "cpu")
    (image,) = generate(pipe, "a dog", settings=Settings(1, width=16, height=16))
    assert image.info["hra_diffusion"]["guidance_scale"] == 1.0
    assert families.of(pipe).sampling_defaults(pipe) == (4, 1.0)
    with pytest.raises(UserError, match="is distilled and takes no guidance; leave out"):
        generate(pipe, "a dog", settings=Settings(1, guidance_scale=4.0, width=16, height=16))
    with pytest.warns(Note, match="the negative prompt has no effect"):
        generate(pipe, "a dog", settings=Settings(1, width=16, height=16), negative_prompt="blurry")
    assert HUB_ID in families.of(pipe).distillation_sign(pipe)
    assert complete_settings(tiny_flux2_pipe(), Settings(width=16, height=16)).steps == 50


@pytest.mark.parametrize("name", families.REFUSED)
def test_related_pipelines_are_refused_with_the_base_to_use(name, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name, "scheduler": ["diffusers", "x"]}))
    with pytest.raises(BaseModelError, match=f"is a {name}, which can't be used: .*; use (black-f|stabil).*/"):
        load_base(str(tmp_path), "cpu")


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_predicts_nearly_the_same(kind, pipe):
    """The layers next to inputs, times and outputs stay in full precision."""
    text = families.of(pipe).embed(families.text_encoders(pipe), families.tokenize(pipe, ["a dog"]))
    noise = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    outputs = []
    for model in (pipe.transformer, tiny_flux2_pipe().transformer):
        if outputs:
            quantization.quantise(model, kind)
        with torch.no_grad():
            outputs.append(families.of(pipe).predict(model, noise, torch.tensor([500.0]), text, 24))
    assert relative(outputs[1], outputs[0]) < {"int8": 0.02, "nf4": 0.2}[kind]
    full = {path for path, layer in model.named_modules() if type(layer) is torch.nn.Linear}
    assert {path.split(".")[0] for path in full} == {"x_embedder", "time_guidance_embed", "norm_out", "proj_out"}


def test_files_name_the_output_layers_of_single_blocks(tmp_path):
    """They have no ".0", unlike those of old files for Stable Diffusion."""
    pipe = tiny_flux2_pipe()
    attachment.attach(pipe.transformer, "lora", {"rank": 2}, name="a")
    stir(attachment.adapter_parameters(pipe.transformer, "a").values())
    tensors = {}
    for path, layer in attachment.adapter_layers(pipe.transformer, "a").items():
        for name, value in (("A", layer.down), ("B", layer.up)):
            tensors[f"transformer.{path}.lora_{name}.weight"] = value.detach().contiguous()
    assert "transformer.single_transformer_blocks.0.attn.to_out.lora_A.weight" in tensors
    save_file(tensors, tmp_path / "other.safetensors")
    _, report = interop.import_adapter(tiny_flux2_pipe(), tmp_path / "other.safetensors", tmp_path, "b")
    assert report.used == report.keys == len(tensors)


def test_the_released_base_has_the_published_size():
    transformer, vae = on_meta(FLUX2_KLEIN.build_denoiser), on_meta(FLUX2_KLEIN.build_vae)
    (encoder,) = on_meta(FLUX2_KLEIN.build_encoders)
    assert sum(p.numel() for p in transformer.parameters()) == 3_875_544_576
    assert sum(p.numel() for p in encoder.parameters()) == 4_022_468_096
    assert vae.bn.num_features == transformer.config.in_channels == 128
    assert transformer.config.joint_attention_dim == len(flux2.LAYERS) * encoder.config.hidden_size
    assert transformer.config.axes_dims_rope == (32, 32, 32, 32) and transformer.config.rope_theta == 2000
    assert sources.base_version(HUB_ID) == "flux2"


def test_parameters_of_adapters_on_fused_projections():
    """The figures of docs/methods.md."""
    transformer = on_meta(FLUX2_KLEIN.build_denoiser)
    shapes = [transformer.get_submodule(path).weight.shape for path in find_targets(transformer)]
    assert len(shapes) == 80 and (27_648, 3072) in shapes and (3072, 12_288) in shapes
    d_in, d_out = sum(shape[1] for shape in shapes), sum(shape[0] for shape in shapes)
    assert (d_in, d_out) == (430_080, 737_280)


def test_downloads_include_the_chat_template():
    files = ["model_index.json", "tokenizer/chat_template.jinja", "tokenizer/tokenizer.json", "README.md",
             "transformer/diffusion_pytorch_model.safetensors"]  # fmt: skip
    assert set(hub.required_files(files)) == {*files} - {"README.md"}
