"""Adapters on a pipeline or a model: the verbs, the facts they keep, and compatibility with the base model."""

import warnings

import pytest
import torch
from conftest import (
    distance,
    pipe_with_two_adapters,
    relative,
    stir,
    tiny_flux2_transformer,
    tiny_llama,
    tiny_pipe,
    tiny_sd3_transformer,
    tiny_unet,
)
from test_contract import tokens_input, unet_input

from hra_diffusion import pipeline
from hra_diffusion.adapters import attachment
from hra_diffusion.adapters.adapter_file import read_info
from hra_diffusion.errors import Note, UserError
from hra_diffusion.generation.requests import Settings
from hra_diffusion.generation.sampling import generate
from hra_diffusion.interop import export
from hra_diffusion.models.loading import load_base


def test_another_base_model_is_incompatible(adapter):
    info = read_info(adapter)
    assert pipeline.incompatibility(info, tiny_pipe()) == ""
    other = tiny_pipe(cross_attention_dim=32)
    stir(other.unet.parameters(), by=1.0)
    assert "weights differ" in pipeline.incompatibility(info, other)
    renamed = info.model_copy(update={"fingerprint": {"unet": {"no.such.layer": 0.1}}})
    assert "made for another base model" in pipeline.incompatibility(renamed, other)


def test_another_noise_process_is_incompatible(base_folder, tmp_path):
    pipe = load_base(str(base_folder), "cpu", prediction_type="v_prediction", rescale_zero_snr=True)
    attachment.attach(pipe.unet, "lora", {"rank": 2}, name="Rex")
    pipeline.save(pipe, tmp_path / "Rex.safetensors", "Rex")
    pipeline.unload(pipe, "Rex")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        info = pipeline.load(pipe, tmp_path / "Rex.safetensors")
    assert (info.prediction_type, info.zero_snr) == ("v_prediction", True)
    other = load_base(str(base_folder), "cpu")
    message = "trained on a base that predicts v_prediction with zero terminal SNR; this one predicts epsilon"
    with pytest.warns(Note, match=message):
        pipeline.load(other, tmp_path / "Rex.safetensors")
    assert message in pipeline.incompatibility(info, other) and pipeline.incompatibility(info, pipe) == ""
    older = info.model_copy(update={"prediction_type": "", "zero_snr": None})
    assert pipeline.incompatibility(older, other) == "", "older files do not record it"


def sd3_input(model):
    latents, text, pooled = random_tensors((2, 4, 8, 8), (2, 5, 64), (2, 16))
    return model(latents, text, pooled, torch.tensor([900.0, 10.0])).sample


def flux2_input(model):
    latents, text = random_tensors((2, 6, 16), (2, 5, 48))
    places = {"img_ids": torch.arange(24).view(6, 4), "txt_ids": torch.zeros(5, 4)}
    return model(latents, text, torch.tensor([0.9, 0.1]), **places).sample


def random_tensors(*shapes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for shape in shapes]


MODELS = {
    "llama": (tiny_llama, tokens_input),
    "sd3": (tiny_sd3_transformer, sd3_input),
    "flux2": (tiny_flux2_transformer, flux2_input),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_alone_takes_every_verb(kind, tmp_path):
    """A text model, and diffusion transformers without a pipeline."""
    torch.manual_seed(0)
    make, output = MODELS[kind]
    model = make().eval()
    with torch.no_grad():
        base = output(model)
        pipeline.attach(model, "hra", {"rank": 4}, name="a")
        stir(attachment.adapter_parameters(model, "a").values())
        adapted = output(model)
        pipeline.activate(model, {"a": 0.5})
        assert pipeline.active(model) == {"a": 0.5} and relative(output(model), adapted) > 1e-4
        pipeline.activate(model, {"a": 1.0})
        pipeline.save(model, tmp_path / "a.safetensors", "a")
        pipeline.merge(model)
        assert not torch.equal(output(model), base) and relative(output(model), adapted) < 1e-5
        pipeline.unmerge(model)
        pipeline.detach(model)
        assert torch.equal(output(model), base) and pipeline.loaded(model) == []
        pipeline.load(model, tmp_path / "a.safetensors")
        assert pipeline.loaded(model) == ["a"] and relative(output(model), adapted) < 1e-6


def test_an_adapter_of_a_unet_alone_fits_its_pipeline(tmp_path):
    pipe = tiny_pipe()
    pipeline.attach(pipe.unet, "lora", {"rank": 2}, name="a")
    pipeline.save(pipe.unet, tmp_path / "a.safetensors", "a")
    pipeline.load(pipe, tmp_path / "a.safetensors", "b")
    assert pipeline.loaded(pipe) == ["a", "b"]


def test_saving_a_loaded_adapter_keeps_what_is_known(adapter, tmp_path):
    pipe = tiny_pipe()
    info = pipeline.load(pipe, adapter)
    pipeline.save(pipe, tmp_path / "again.safetensors", info.name)
    again = read_info(tmp_path / "again.safetensors")
    assert again == info and info.trigger and info.class_noun
    assert pipeline.subject_of(pipe, info.name) == info.subject
    pipeline.save(pipe, tmp_path / "other.safetensors", info.name, trigger="xyz")
    assert read_info(tmp_path / "other.safetensors").subject == f"xyz {info.class_noun}"
    pipeline.unload(pipe, info.name)
    assert pipeline.subject_of(pipe, info.name) == ""


@pytest.mark.parametrize("merged", [False, True])
def test_disabled_adapters_are_back_after_the_block(merged):
    unet = tiny_unet().eval()
    with torch.no_grad():
        base = unet_input(unet)
        pipeline.attach(unet, "hoft", {"rank": 4}, name="a")
        stir(attachment.adapter_parameters(unet, "a").values())
        pipeline.activate(unet, {"a": 0.7})
        if merged:
            pipeline.merge(unet)
        adapted = unet_input(unet)
        with pipeline.disabled(unet):
            assert torch.equal(unet_input(unet), base)
        assert torch.equal(unet_input(unet), adapted) and pipeline.active(unet) == {"a": 0.7}


def test_status_and_trainable_parameters(capsys):
    assert pipeline.status(tiny_pipe()) == "no adapters"
    pipe = pipe_with_two_adapters()
    pipeline.activate(pipe, {"a": 0.5})
    header, *rows = pipeline.status(pipe).splitlines()
    assert " ".join(header.split()) == "component adapter method rank layers parameters strength subject"
    assert [row.split()[:4] + row.split()[6:7] for row in rows] == [
        ["unet", "a", "hra", "4", "0.5"],
        ["unet", "b", "lora", "4", "inactive"],
        ["text_encoder", "a", "hra", "4", "0.5"],
    ]
    assert "active: a × 0.5" in repr(pipe.unet) and "rank=4" in repr(pipe.unet)
    pipeline.print_trainable_parameters(pipe.unet)
    counts = [sum(p.numel() for p in attachment.adapter_parameters(pipe.unet, name).values()) for name in "ab"]
    assert f"trainable params: {sum(counts):,} || all params: " in capsys.readouterr().out


def test_excluded_layers_are_not_adapted():
    unet = tiny_unet()
    paths = pipeline.attach(unet, "lora", {"rank": 2}, exclude=r".*attn2.*")
    assert paths and not any("attn2" in path for path in paths)
    with pytest.raises(UserError, match="exclude='nowhere' matches no layer of the target 'attention', such as down"):
        pipeline.attach(unet, "lora", {"rank": 2}, name="b", exclude="nowhere")


def test_generating_and_exporting_while_merged(tmp_path):
    """Merged adapters are what generate uses; an export merges its own strength and leaves the pipeline as it was."""
    pipe, few = pipe_with_two_adapters(), Settings(steps=2)
    pipeline.activate(pipe, {"a": 0.6})
    live = generate(pipe, "a dog", settings=few)[0]
    pipeline.merge(pipe)
    weights = pipe.unet.state_dict()
    assert distance(generate(pipe, "a dog", settings=few)[0], live) < 1
    assert distance(generate(pipe, "a dog", {"a": 0.6}, settings=few)[0], live) < 1
    with pytest.raises(UserError, match="merged into the weights; unmerge them first"):
        generate(pipe, "a dog", {"b": 1.0}, settings=few)
    export(pipe, "a", "merged", tmp_path / "merged")
    assert pipeline.is_merged(pipe) and pipeline.active(pipe) == {"a": 0.6}
    assert all(torch.equal(weights[key], value) for key, value in pipe.unet.state_dict().items())
