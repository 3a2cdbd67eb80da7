"""Exports, loaded by other programs' unpatched loaders: their outputs must equal ours to 1e-4."""

import logging

import pytest
import torch
from conftest import PIPES, altered, everything, relative, stir, tiny_pipe
from diffusers import DDIMScheduler
from diffusers.utils import logging as diffusers_logging
from loaders import (
    BOTH,
    EXACT,
    adapted,
    each_form_by_format,
    each_method,
    with_diffusers,
    with_from_pretrained,
    with_from_single_file,
    with_lycoris,
    with_peft,
)
from safetensors.torch import load_file

from hra_diffusion import interop, pipeline
from hra_diffusion.adapters import attachment, merging, registry
from hra_diffusion.adapters.quantization import quantise
from hra_diffusion.errors import UserError
from hra_diffusion.files import FileError
from hra_diffusion.interop.exports import ExportError
from hra_diffusion.models import families, loading, sources

PLAIN = [name for name in registry.method_names() if name not in ("shoft", "boft", "dora")]


@pytest.fixture
def diffusers_log(caplog):
    """Log of diffusers' loader."""
    logger = logging.getLogger("diffusers")
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_warning()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
    diffusers_logging.set_verbosity(before)


@each_method(PLAIN)
@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_diffusers_loads_exports_exactly_and_without_warnings(kind, method, format, tmp_path, diffusers_log):
    pipe, ours = adapted(kind, method)
    done = interop.export(pipe, "Rex", format, tmp_path / "rex.safetensors")
    assert (done.form, done.error) == ("LoRA", 0.0)
    assert relative(everything(with_diffusers(kind, done.path)), ours) < EXACT
    assert not diffusers_log.records


@pytest.mark.parametrize("kind", PIPES)
def test_diffusers_loads_shoft_as_a_dora_exactly(kind, tmp_path, diffusers_log):
    pipe, ours = adapted(kind, "shoft")
    done = interop.export(pipe, "Rex", "diffusers", tmp_path / "folder")
    assert (done.form, done.path.name) == ("DoRA", "pytorch_lora_weights.safetensors")
    assert relative(everything(with_diffusers(kind, done.path.parent)), ours) < EXACT
    assert not diffusers_log.records


@pytest.mark.parametrize("kind", PIPES)
def test_diffusers_drops_the_magnitudes_of_a_kohya_dora(kind, tmp_path):
    """The compatibility table therefore recommends --format diffusers."""
    pipe, ours = adapted(kind, "shoft")
    done = interop.export(pipe, "Rex", "kohya", tmp_path / "rex.safetensors")
    assert relative(everything(with_diffusers(kind, done.path)), ours) > 100 * EXACT


@each_method()
def test_peft_loads_exports_exactly(kind, method, tmp_path):
    pipe, ours = adapted(kind, method)
    done = interop.export(pipe, "Rex", "peft", tmp_path / "rex")
    assert done.form == {"hra": "HRA", "oft": "OFT", "shoft": "DoRA", "boft": "DoRA", "dora": "DoRA"}.get(
        method, "LoRA"
    )
    assert relative(everything(with_peft(kind, done.path)), ours) < EXACT


@each_method(kinds=("sd", "sd2"))
def test_lycoris_loads_exports_exactly(kind, method, tmp_path):
    pipe, ours = adapted(kind, method)
    done = interop.export(pipe, "Rex", "kohya", tmp_path / "rex.safetensors")
    assert relative(everything(with_lycoris(kind, done.path)), ours) < EXACT


@each_method()
def test_merged_weights_load_exactly(kind, method, tmp_path):
    merged_weights_load_exactly(kind, method, with_from_pretrained, tmp_path)


@pytest.mark.parametrize("kind", PIPES)
@pytest.mark.parametrize("method", BOTH)
def test_merged_weights_of_a_single_file_load_exactly(kind, method, tmp_path):
    merged_weights_load_exactly(kind, method, with_from_single_file, tmp_path)


def merged_weights_load_exactly(kind, method, load, tmp_path):
    pipe, ours = adapted(kind, method)
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    place = tmp_path / ("rex" if load is with_from_pretrained else "rex.safetensors")
    assert interop.export(pipe, "Rex", "merged", place).form == "weights"
    (tmp_path / "plain").touch()
    modes = {file.stat().st_mode for file in (place.rglob("*") if place.is_dir() else [place]) if file.is_file()}
    assert modes == {(tmp_path / "plain").stat().st_mode}, "file permissions are those of any new file"
    loaded = load(kind, place)
    assert relative(everything(loaded), ours) < EXACT
    assert pipeline.components(loaded).keys() == pipeline.components(pipe).keys()
    for part in ("vae", *pipeline.components(loaded)):
        plain = PIPES[kind]()
        assert getattr(loaded, part).state_dict().keys() == getattr(plain, part).state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in pipe.unet.state_dict().items())
    assert pipeline.active(pipe) == {"Rex": 1.0} and torch.equal(everything(pipe), ours)


@pytest.mark.parametrize("method", registry.method_names())
def test_rotations_of_a_quantised_base_are_not_exported(method, tmp_path):
    pipe = tiny_pipe()
    quantise(pipe.unet, "int8")
    attachment.attach(pipe.unet, method, {"rank": 4}, name="Rex")
    if method in ("lora", "moslora"):
        assert interop.export(pipe, "Rex", "kohya", tmp_path / "rex.safetensors").form == "LoRA"
        return
    with pytest.raises(ExportError, match="stored as int8; load the base in full precision"):
        interop.export(pipe, "Rex", "kohya", tmp_path / "rex.safetensors")
    pipeline.activate(pipe, {"Rex": 0.5})
    with pytest.raises(UserError, match="quantised"):
        interop.export(pipe, "Rex", "merged", tmp_path / "base")
    assert pipeline.active(pipe) == {"Rex": 0.5}, "unchanged"


def test_a_quantised_base_is_not_saved_with_an_adapter_of_other_layers(tmp_path):
    pipe = tiny_pipe()
    quantise(pipe.unet, "nf4")
    attachment.attach(pipe.text_encoder, "lora", {"rank": 2}, name="Rex")
    with pytest.raises(ExportError, match="weights are quantised; load the base in full precision"):
        interop.export(pipe, "Rex", "merged", tmp_path / "base")
    assert not list(tmp_path.iterdir())


def test_the_vae_of_a_single_file_does_not_change(tmp_path):
    pipe, _ = adapted("sd", "lora")
    interop.export(pipe, "Rex", "merged", tmp_path / "rex.safetensors")
    loaded = with_from_single_file("sd", tmp_path / "rex.safetensors").vae.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in pipe.vae.state_dict().items())


@each_form_by_format("kohya", "diffusers", "peft")
def test_convolutions_are_exported(method, format, tmp_path):
    pipe, ours = adapted("sd", method, "attention+conv")
    done = interop.export(pipe, "Rex", format, tmp_path / ("rex" if format == "peft" else "rex.safetensors"))
    load = {"peft": with_peft, "kohya": with_lycoris, "diffusers": with_diffusers}[format]
    assert relative(everything(load("sd", done.path)), ours) < EXACT


@each_form_by_format("diffusers", "peft", "merged")
def test_another_strength_becomes_strength_one(method, format, tmp_path):
    pipe, _ = adapted("sd", method)
    pipeline.activate(pipe, {"Rex": 0.4})
    ours = everything(pipe)
    done = interop.export(pipe, "Rex", format, tmp_path / "rex", strength=0.4)
    load = {"peft": with_peft, "diffusers": with_diffusers, "merged": with_from_pretrained}[format]
    assert relative(everything(load("sd", done.path)), ours) < EXACT


def test_a_truncated_lora_states_its_error(tmp_path):
    """For SHOFT as a LoRA of too small a rank, the stated error is that of the weights."""
    pipe, ours = adapted("sd", "shoft")
    done = interop.export(pipe, "Rex", "kohya", tmp_path / "rex.safetensors", lora_rank=6)
    assert done.form == "LoRA" and done.rank == 6
    loaded = with_diffusers("sd", done.path)
    loaded.fuse_lora()
    loaded.unload_lora_weights()
    lost = total = 0.0
    with (
        merging.temporarily_merged(pipe.unet, {"Rex": 1.0}),
        merging.temporarily_merged(pipe.text_encoder, {"Rex": 1.0}),
    ):
        for component, base in pipeline.components(tiny_pipe()).items():
            theirs, expected = getattr(loaded, component).state_dict(), getattr(pipe, component).state_dict()
            for key, value in base.state_dict().items():
                lost += float((theirs[key] - expected[key]).square().sum())
                total += float((expected[key] - value).square().sum())
    assert 0.01 < done.error < 1 and done.error == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    enough = interop.export(pipe, "Rex", "kohya", tmp_path / "all.safetensors", lora_rank=32)
    assert enough.error < 1e-6 and relative(everything(with_diffusers("sd", enough.path)), ours) < EXACT


def test_an_output_of_magnitude_zero_is_refused_as_a_dora(tmp_path):
    pipe, _ = adapted("sd", "shoft")
    with torch.no_grad():
        next(iter(attachment.adapter_layers(pipe.unet, "Rex").values())).magnitude[3] = 0
    with pytest.raises(ExportError, match=r"an output has magnitude 0; export a plain LoRA with --lora-rank"):
        interop.export(pipe, "Rex", "diffusers", tmp_path / "rex.safetensors")
    assert not list(tmp_path.iterdir())


def test_keys_are_those_that_other_programs_read(tmp_path):
    """diffusers' names for SD 1 and 2, the original names for SDXL, text encoders with "text_model"."""
    keys = {}
    for kind in PIPES:
        interop.export(adapted(kind, "lora")[0], "Rex", "kohya", tmp_path / f"{kind}.safetensors")
        tensors = load_file(tmp_path / f"{kind}.safetensors")
        keys[kind] = {key.removesuffix(".lora_down.weight") for key in tensors if key.endswith("lora_down.weight")}
        assert all(tensors[f"{key}.alpha"] == 4 and tensors[f"{key}.alpha"].shape == () for key in keys[kind])
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0" in keys["sd"] == keys["sd2"]
    assert "lora_te_text_model_encoder_layers_1_self_attn_q_proj" in keys["sd"]
    assert "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k" in keys["sdxl"]
    assert "lora_te1_text_model_encoder_layers_0_self_attn_v_proj" in keys["sdxl"]
    assert "lora_te2_text_model_encoder_layers_1_self_attn_out_proj" in keys["sdxl"]


def test_unknown_adapters_and_formats_are_refused(tmp_path, pipe):
    with pytest.raises(ValueError, match="no adapter named 'Rex' is loaded"):
        interop.export(pipe, "Rex", "kohya", tmp_path / "rex.safetensors")
    attachment.attach(pipe.unet, "lora", name="Rex")
    with pytest.raises(ExportError, match="unknown format 'onnx'; use one of kohya, diffusers, peft, merged"):
        interop.export(pipe, "Rex", "onnx", tmp_path / "rex.safetensors")
    assert families.of(pipe).name == "sd"


@pytest.mark.skipif(not (sources.ASSETS / "toybox").is_dir(), reason="the embedded base is still being trained")
@pytest.mark.parametrize(("method", "format"), [("hra", "kohya"), ("shoft", "diffusers")])
def test_diffusers_generates_the_same_image_from_toybox(method, format, tmp_path):
    """With trained weights, and all denoising steps from the same noise."""
    ours, theirs = (loading.load_base("toybox", "cpu") for _ in range(2))
    for model in pipeline.components(ours).values():
        attachment.attach(model, method, {"rank": 4}, name="Rex")
        stir(attachment.adapter_parameters(model, "Rex").values(), by=0.05)
    theirs.load_lora_weights(str(interop.export(ours, "Rex", format, tmp_path / "rex.safetensors").path))
    images = []
    for pipe in (ours, theirs):
        generator = torch.Generator().manual_seed(1)
        images.append(pipe("a dog", num_inference_steps=2, output_type="np", generator=generator).images)
    assert abs(images[0] - images[1]).max() < 1e-3


@pytest.mark.parametrize("scheduler", [{"beta_schedule": "linear"}, {"prediction_type": "sample"}])
def test_a_noise_process_without_a_marker_is_refused_in_a_single_file(scheduler, tmp_path, pipe):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **scheduler)
    attachment.attach(pipe.unet, "lora", name="Rex")
    with pytest.raises(UserError, match=r"can't describe this base's noise process.*save a diffusers folder"):
        interop.export(pipe, "Rex", "merged", tmp_path / "rex.safetensors")
    assert not list(tmp_path.iterdir())
    loaded = with_from_pretrained("sd", interop.export(pipe, "Rex", "merged", tmp_path / "rex").path)
    torch.testing.assert_close(loaded.scheduler.betas, pipe.scheduler.betas)


def test_layers_without_a_place_in_the_original_layout_are_refused(tmp_path, pipe):
    """A UNet that pools the prompt, such as toybox's, can be merged into a folder only."""
    pipe.register_modules(unet=altered(pipe.unet, addition_embed_type="text", addition_embed_type_num_heads=4))
    attachment.attach(pipe.unet, "lora", name="Rex")
    with pytest.raises(UserError, match=r"no place for the UNet's add_embedding.*; save a diffusers folder instead"):
        interop.export(pipe, "Rex", "merged", tmp_path / "rex.safetensors")
    assert pipeline.loaded(pipe) == ["Rex"] and not list(tmp_path.iterdir())
    assert interop.export(pipe, "Rex", "merged", tmp_path / "rex").path.is_dir()


@pytest.mark.parametrize("file", ["base.safetensors", "base"])
def test_a_merged_export_that_the_disk_refuses_is_a_file_error_and_leaves_nothing(file, tmp_path):
    """A limit of the size of files stands for a full disk, which safetensors reports in the same way."""
    resource = pytest.importorskip("resource", reason="needs a limit of the size of files")
    pipe, _ = adapted("sd", "lora")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(FileError, match="too large"):
            interop.export(pipe, "Rex", "merged", tmp_path / file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
