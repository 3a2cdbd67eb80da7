"""Metadata and keys of exported LoRA files, read by the rules of other programs, reimplemented from their source."""

import base64
import hashlib
import io
import json
import re
from datetime import datetime

import pytest
import torch
from conftest import PIPES, altered, tiny_text_encoder
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from hra_diffusion import interop, pipeline
from hra_diffusion.adapters import attachment, targets
from hra_diffusion.adapters.adapter_file import AdapterInfo
from hra_diffusion.interop import key_names
from hra_diffusion.models.families.architectures import PREDICTION_KEY, SD1, SD2, SDXL, on_meta

VERSIONS = {"sd": "SD1", "sd2": "SD2", "sdxl": "SDXL"}


def automatic1111(facts):
    """``NetworkOnDisk.detect_version`` of AUTOMATIC1111 1.10.1 (extensions-builtin/Lora/network.py)."""
    if facts.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    if facts.get("ss_v2") == "True":
        return "SD2"
    return "SD1" if facts else "Unknown"


def forge(facts):
    """``NetworkOnDisk.detect_version`` of Forge dfdcbab6 (extensions-builtin/sd_forge_lora/network.py)."""
    architecture = facts.get("modelspec.architecture", "")
    version = facts.get("ss_base_model_version", "")
    if architecture == "stable-diffusion-xl-v1-base/lora" or version.startswith("sdxl_"):
        return "SDXL"
    if facts.get("ss_v2") == "True":
        return "SD2"
    return "SD1" if architecture == "stable-diffusion-v1/lora" else "Unknown"


def invokeai(tensors):
    """``lora_token_vector_length`` and ``_get_base_or_raise`` of InvokeAI 8e71a8a5: the text's width decides.

    Sources: invokeai/backend/model_manager/util/model_util.py and configs/lora.py. It stops at the first width found.
    """
    encoders = {}
    for key, tensor in tensors.items():
        layer, _, part = key.partition(".")
        width = tensor.shape[1] if part == "lora_down.weight" else None
        cross = layer.startswith("lora_unet_") and layer.endswith(("_attn2_to_k", "_attn2_to_v", "_time_emb_proj"))
        text = layer.startswith("lora_te") and "_self_attn_" in layer
        found = width if cross or (text and layer.startswith("lora_te_")) else None
        if text and not layer.startswith("lora_te_"):
            encoders[layer[:8]] = width
            if all(encoders.get(name) for name in ("lora_te1", "lora_te2")):
                found = sum(encoders.values())
        if found is not None:
            return {768: "SD1", 1024: "SD2", 1280: "SDXL", 2048: "SDXL"}.get(found, f"no model of width {found}")
    deep = any(int(n) >= 2 for key in tensors for n in re.findall(r"^lora_unet_.*_transformer_blocks_(\d+)_", key))
    return "SDXL" if deep else "none"


def of_real_width(kind):
    """A tiny pipeline with the released model's width of text embeddings, which the version rules read."""
    pipe = PIPES[kind]()
    width = {"sd": 768, "sd2": 1024, "sdxl": 2048}[kind]
    pipe.register_modules(unet=altered(pipe.unet, cross_attention_dim=width))
    own = {"hidden_size": 768 if kind != "sd2" else 1024, "hidden_act": pipe.text_encoder.config.hidden_act}
    pipe.register_modules(text_encoder=tiny_text_encoder(**own))
    if kind == "sdxl":
        wide = type(pipe.text_encoder_2.config)(**pipe.text_encoder_2.config.to_dict() | {"hidden_size": 1280})
        pipe.register_modules(text_encoder_2=type(pipe.text_encoder_2)(wide))
    return pipe


def exported(pipe, path, method="lora", format="kohya", targets="attention", **more):
    for model in pipeline.components(pipe).values():
        where = targets if model is pipe.unet else "attention"
        attachment.attach(model, method, {"rank": 2}, name="Rex", targets=where)
    done = interop.export(pipe, "Rex", format, path / "rex.safetensors", **more)
    with safe_open(done.path, "pt") as file:
        return file.metadata(), load_file(done.path)


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
@pytest.mark.parametrize("kind", PIPES)
def test_every_program_detects_the_version(kind, format, tmp_path):
    facts, tensors = exported(of_real_width(kind), tmp_path, format=format, targets=r".*(to_k|to_q|time_emb_proj)")
    assert automatic1111(facts) == forge(facts) == VERSIONS[kind]
    if format == "kohya":
        assert invokeai(tensors) == VERSIONS[kind]


def test_version_names_are_those_of_sd_scripts(tmp_path):
    """get_model_version_str_for_sd1_sd2 (library/model_util.py), determine_architecture and determine_implementation
    (library/sai_model_spec.py) of sd-scripts 48d368fa."""
    found = {}
    for kind in PIPES:
        (tmp_path / kind).mkdir()
        facts, _ = exported(of_real_width(kind), tmp_path / kind)
        keys = (
            "ss_base_model_version",
            "modelspec.architecture",
            "modelspec.prediction_type",
            "modelspec.implementation",
        )
        found[kind] = [facts[key] for key in keys]
    sgm = "https://github.com/Stability-AI/generative-models"
    assert found == {
        "sd": ["sd_v1", "stable-diffusion-v1/lora", "epsilon", "diffusers"],
        "sd2": ["sd_v2_v", "stable-diffusion-v2-768-v/lora", "v", "diffusers"],
        "sdxl": ["sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", "epsilon", sgm],
    }


def test_a_base_of_another_architecture_has_no_version(tmp_path):
    facts, _ = exported(PIPES["sd"](), tmp_path)
    assert not facts.keys() & {"ss_base_model_version", "ss_v2", "modelspec.architecture"}
    assert facts["modelspec.title"] == "Rex"


def test_a_base_that_predicts_the_sample_has_no_prediction_type(tmp_path):
    pipe = PIPES["sd"]()
    pipe.scheduler.register_to_config(prediction_type="sample")
    facts, _ = exported(pipe, tmp_path)
    assert PREDICTION_KEY not in facts


def test_the_metadata_are_those_of_kohyas_trainer(tmp_path):
    Image.new("RGB", (640, 320), "red").save(tmp_path / "sample.png")
    info = AdapterInfo(
        name="Rex", method="hra", options={}, base="tiny", fingerprint={}, trigger="sks", class_noun="dog",
        training={"photos": 5, "resolution": 448},
    )  # fmt: skip
    facts, tensors = exported(of_real_width("sd"), tmp_path, "hra", info=info, sample=tmp_path / "sample.png")
    assert facts["ss_network_module"] == "networks.lora" and facts["ss_output_name"] == "Rex"
    rank = next(tensor.shape[0] for key, tensor in tensors.items() if key.endswith("lora_down.weight"))
    assert (facts["ss_network_dim"], facts["ss_network_alpha"]) == (str(rank), f"{rank}.0")
    assert json.loads(facts["ss_tag_frequency"]) == {"Rex": {"sks dog": 5}}
    assert facts["ss_resolution"] == "(448, 448)" and facts["modelspec.resolution"] == "448x448"
    assert facts["ss_sd_model_name"] == "tiny"
    assert facts["modelspec.sai_model_spec"] == "1.0.1" and facts["modelspec.trigger_phrase"] == "sks dog"
    assert facts["modelspec.description"] == "HRA adapter, exact on tiny at strength 1"
    assert datetime.fromisoformat(facts["modelspec.date"]).tzinfo
    data = (tmp_path / "rex.safetensors").read_bytes()
    content = data[8 + int.from_bytes(data[:8], "little") :]
    assert facts["modelspec.hash_sha256"] == f"0x{hashlib.sha256(content).hexdigest()}"
    kind, _, picture = facts["modelspec.thumbnail"].partition(",")
    thumbnail = Image.open(io.BytesIO(base64.b64decode(picture)))
    assert (kind, thumbnail.format, thumbnail.size) == ("data:image/jpeg;base64", "JPEG", (256, 128))


def test_unknown_values_are_omitted(tmp_path):
    (tmp_path / "sample.png").write_bytes(b"no picture")
    facts, _ = exported(of_real_width("sd"), tmp_path, sample=tmp_path / "sample.png")
    gone = {"ss_tag_frequency", "ss_resolution", "modelspec.trigger_phrase", "modelspec.thumbnail", "modelspec.author"}
    assert not facts.keys() & (gone | {"modelspec.description"})
    assert facts["modelspec.resolution"] == "16x16", "the base's own"


def test_a_dora_names_a_network_module_with_magnitudes(tmp_path):
    facts, tensors = exported(of_real_width("sd"), tmp_path, "shoft")
    assert any(key.endswith("dora_scale") for key in tensors) and facts["ss_network_module"] == "lycoris.kohya"
    arguments = {"algo": "lora", "dora_wd": "True", "wd_on_output": "True"}
    assert json.loads(facts["ss_network_args"]) == arguments


# Keys at full size, on the meta device


def full_size(architecture):
    """The components of the released model that have keys, on the meta device."""
    parts = {"unet": on_meta(architecture.build_denoiser), "vae": None, "scheduler": None}
    for number, encoder in zip(("", "_2"), on_meta(architecture.build_encoders), strict=False):
        parts |= {f"text_encoder{number}": encoder, f"tokenizer{number}": None}
    if architecture is SDXL:
        return StableDiffusionXLPipeline(**parts, add_watermarker=False)
    checks = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**parts, **checks)


KOHYA_TARGETS = {
    "unet": r".*attentions\..*(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out)",
    "text": r".*(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])",
}
"""What sd-scripts adapts: linear layers and 1×1 convolutions of Transformer2DModel, CLIPAttention and CLIPMLP."""


def kohya_names(pipe):
    """Component -> path -> key of the layers that sd-scripts adapts."""
    return {
        part: {
            path: key_names.kohya_key(pipe, part, path)
            for path in targets.find_targets(model, KOHYA_TARGETS["unet" if part == "unet" else "text"])
        }
        for part, model in pipeline.components(pipe).items()
    }


@pytest.mark.parametrize(
    ("architecture", "counts", "examples"),
    [
        (SD1, [192, 72], ["lora_unet_down_blocks_0_attentions_0_proj_in",
                          "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0",
                          "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj",
                          "lora_te_text_model_encoder_layers_11_self_attn_q_proj"]),
        (SD2, [192, 138], ["lora_unet_down_blocks_2_attentions_1_transformer_blocks_0_attn2_to_v",
                           "lora_te_text_model_encoder_layers_22_mlp_fc2"]),
        (SDXL, [722, 72, 192], ["lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_k",
                                "lora_unet_middle_block_1_proj_out",
                                "lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_2",
                                "lora_te1_text_model_encoder_layers_0_mlp_fc1",
                                "lora_te2_text_model_encoder_layers_31_self_attn_out_proj"]),
    ],
    ids=["sd1", "sd2", "sdxl"],
)  # fmt: skip
def test_keys_at_full_size_are_kohyas(architecture, counts, examples):
    """Their number is that of sd-scripts, and diffusers' reader maps each key back to its layer."""
    pipe = full_size(architecture)
    keys = kohya_names(pipe)
    assert [len(set(found.values())) for found in keys.values()] == counts
    every = {key for found in keys.values() for key in found.values()}
    assert set(examples) <= every
    for part, found in keys.items():
        tensors = {f"{key}.lora_{side}.weight": torch.zeros(1, 1) for key in found.values() for side in ("down", "up")}
        if part == "unet" and architecture is SDXL:
            tensors = _maybe_map_sgm_blocks_to_diffusers(tensors, pipe.unet.config)
        read, _ = _convert_non_diffusers_lora_to_diffusers(tensors)
        assert {as_path(key) for key in read} == {f"{part}.{key_names.public_path(part, path)}" for path in found}


def as_path(key):
    """The layer of a key of diffusers' reader, which uses the attention names of older processors."""
    key = re.sub(r"(\.lora|\.lora_linear_layer)?\.(down|up)\.weight$", "", key)
    if not (found := re.fullmatch(r"(.+?)(?:\.processor)?\.to_(q|k|v|out)_lora", key)):
        return key
    attention, side = found.groups()
    if key.startswith("text_encoder"):
        return f"{attention}.{side}_proj"
    return f"{attention}.to_out.0" if side == "out" else f"{attention}.to_{side}"


def test_sdxl_blocks_are_those_of_the_original_configuration():
    """Attention at the second and third resolution, with 2 and 10 blocks: sd_xl_base.yaml of generative-models."""
    pipe = full_size(SDXL)
    found = {}
    for key in kohya_names(pipe)["unet"].values():
        if match := re.fullmatch(
            r"lora_unet_((?:input|middle|output)_blocks?(?:_\d+)+)_transformer_blocks_(\d+)_.*", key
        ):
            found[match[1]] = max(found.get(match[1], 0), int(match[2]) + 1)
    depth = {"input": {4: 2, 5: 2, 7: 10, 8: 10}, "output": {0: 10, 1: 10, 2: 10, 3: 2, 4: 2, 5: 2}}
    expected = {f"{way}_blocks_{block}_1": deep for way, blocks in depth.items() for block, deep in blocks.items()}
    assert found == expected | {"middle_block_1": 10}
