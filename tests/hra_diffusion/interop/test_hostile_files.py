"""Small files that stand for much: shapes, settings and metadata are checked before anything is built."""

import json
import time

import pytest
import torch
from conftest import tiny_pipe
from safetensors.torch import load_file, save_file

from hra_diffusion import interop
from hra_diffusion.adapters import adapter_file
from hra_diffusion.interop.imports import AdapterImportError
from training.memory.peak import peak_memory, reset_peak_memory

PATH = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"  # 32 to 32
CONV = "mid_block.resnets.0.conv1"  # 32 to 32, 3×3
LAYER, CONVOLUTION = f"lora_unet_{PATH.replace('.', '_')}", f"lora_unet_{CONV.replace('.', '_')}"
MANY = 20_000
BOUND = 100 * 2**20


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipe()


def saved(folder, tensors, layer=LAYER, metadata=None):
    save_file({f"{layer}.{part}": tensor for part, tensor in tensors.items()}, folder / "a.safetensors", metadata)
    return folder / "a.safetensors"


def refused(pipe, path, message, bound=BOUND):
    """Assert that a file is refused, within a second and a bound of memory."""
    before, start = reset_peak_memory(), time.perf_counter()
    with pytest.raises(AdapterImportError, match=message) as error:
        interop.parse_adapter(pipe, path)
    assert time.perf_counter() - start < 1 and peak_memory() - before < bound
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (LAYER, {"lokr_w1": (150, 150), "lokr_w2": (150, 150)}),
        (LAYER, {"lokr_w1": (MANY, 1), "lokr_w2": (1, MANY)}),
        (LAYER, {"lokr_w1_a": (MANY, 1), "lokr_w1_b": (1, MANY), "lokr_w2": (1, 1)}),
        (LAYER, {"lokr_w1": (1, 1), "lokr_w2_a": (1, MANY), "lokr_w2_b": (1, MANY), "lokr_t2": (1, 1, 1, 1)}),
        (LAYER, {"hra_u": (1, MANY)}),
        (LAYER, {"hra_u": (MANY, 1)}),
        (LAYER, {"hada_w1_a": (MANY, 1), "hada_w1_b": (1, MANY), "hada_w2_a": (MANY, 1), "hada_w2_b": (1, MANY)}),
        (LAYER, {"hada_w1_a": (1, MANY), "hada_w1_b": (MANY, 1), "hada_w2_a": (1, MANY), "hada_w2_b": (MANY, 1)}),
        (LAYER, {"diff": (1, MANY)}),
        (LAYER, {"oft_blocks": (1, 1, MANY)}),
        (LAYER, {"oft_blocks": (MANY, 1, 1)}),
        (LAYER, {"oft_blocks": (5000, 1, 2, 2)}),
        (LAYER, {"oft_R.weight": (1, MANY)}),
        (LAYER, {"lora_up.weight": (MANY, 1), "lora_down.weight": (1, MANY), "dora_scale": (MANY, 1)}),
        (CONVOLUTION, {"a1.weight": (MANY, 1), "a2.weight": (1, MANY), "b1.weight": (32, 1), "b2.weight": (1, 288)}),
        (CONVOLUTION, {"lora_up.weight": (32, 1, 1, 1), "lora_down.weight": (1, MANY, 1, 1),
                       "lora_mid.weight": (1, 1, 100, 100)}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_factors_of_another_base_are_refused_before_they_are_multiplied(layer, shapes, pipe, tmp_path):
    path = saved(tmp_path, {part: torch.ones(shape) for part, shape in shapes.items()}, layer)
    refused(pipe, path, "another base|don't fit|not blocks")


@pytest.mark.parametrize("prefix", ["hada", "lokr"])
def test_many_factors_of_this_base_take_the_memory_of_its_weight(prefix, pipe, tmp_path):
    """For LoHa, 32 × 2,000² columns would be 1 GB."""
    shapes = {
        "hada": {"hada_w1_a": (32, 2000), "hada_w1_b": (2000, 32), "hada_w2_a": (32, 2000), "hada_w2_b": (2000, 32)},
        "lokr": {"lokr_w1_a": (4, 3000), "lokr_w1_b": (3000, 4), "lokr_w2_a": (8, 3000), "lokr_w2_b": (3000, 8)},
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {part: torch.randn(shape, generator=generator) / 60 for part, shape in shapes[prefix].items()}
    before = reset_peak_memory()
    imported, _, _ = interop.parse_adapter(pipe, saved(tmp_path, tensors))
    assert peak_memory() - before < BOUND
    change = imported.tensors[f"unet.{PATH}.up"] @ imported.tensors[f"unet.{PATH}.down"]
    first, second = (tensors[f"{prefix}_w{i}_a"] @ tensors[f"{prefix}_w{i}_b"] for i in (1, 2))
    expected = first * second if prefix == "hada" else torch.kron(first, second)
    torch.testing.assert_close(change, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_up.weight": torch.ones(32, 2), "lora_down.weight": torch.ones(2, 32), "dora_scale": torch.tensor(1.0)},
         "1 magnitudes for 32"),
        ({"lora_up.weight": torch.ones(32, 2, 2, 2), "lora_down.weight": torch.ones(2, 32)}, "ranks"),
        ({"lora_up.weight": torch.ones([1] * 60), "lora_down.weight": torch.ones(2, 32)}, "60 dimensions"),
        ({"weight": torch.ones(7), "on_input": torch.tensor(True)}, "7 scales"),
        ({"lora_up.weight": torch.ones(32, 2).to(torch.complex64), "lora_down.weight": torch.ones(2, 32)}, "C64"),
        ({"lora_up.weight": torch.tensor(1.0), "lora_down.weight": torch.ones(2, 32)}, "ranks|fit"),
        ({"lokr_w1": torch.tensor(1.0), "lokr_w2": torch.ones(32, 32)}, "not a matrix"),
    ],
)  # fmt: skip
def test_tensors_of_odd_shapes_and_types_are_refused(tensors, message, pipe, tmp_path):
    refused(pipe, saved(tmp_path, tensors), message)


def test_float8_tensors_are_read(pipe, tmp_path):
    tensors = {"lora_up.weight": torch.ones(32, 2), "lora_down.weight": torch.ones(2, 32)}
    low = {part: tensor.to(torch.float8_e4m3fn) for part, tensor in tensors.items()}
    assert interop.parse_adapter(pipe, saved(tmp_path, low))[-1].used == 2


def test_a_long_header_and_many_tensors_are_refused(pipe, tmp_path):
    refused(pipe, saved(tmp_path, {"x": torch.ones(1)}, metadata={"ss_tags": "x" * 2**24}), "its header has 17 MB")
    refused(pipe, saved(tmp_path, {f"{number}": torch.ones(1) for number in range(20_001)}), "20,001 tensors")
    refused(pipe, saved(tmp_path, {"<" * 10_000: torch.ones(1)}), "more than 500 characters")


def peft(folder, **settings):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4} | settings
    prefix = f"base_model.model.{PATH}.lora_"
    save_file({f"{prefix}A.weight": torch.ones(4, 32), f"{prefix}B.weight": torch.ones(32, 4)},
              folder / "adapter_model.safetensors")  # fmt: skip
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "settings",
    [{"alpha_pattern": {r"(\w+\.?)+X": 2.0}}, {"rank_pattern": {r"(\w+\.?)+X": 2}},
     {"exclude_modules": r"(\w+\.?)+X"},
     {"target_modules": ["to_q"], "layers_to_transform": [1], "layers_pattern": [r"(\w+\.?)+X", "down_blocks"]}],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
def test_patterns_of_a_peft_folder_are_matched_in_linear_time(settings, pipe, tmp_path):
    start = time.perf_counter()
    interop.parse_adapter(pipe, peft(tmp_path, **settings))
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"alpha_pattern": {"(?!a)b": 2}}, "lookaround"), ({"target_modules": "(a)\\1"}, "backreferences"),
     ({"rank_pattern": {f"layer{n}": 1 for n in range(3000)}}, "at most 2000"), ({"r": "x" * 10**5}, "r: "),
     ({"x" * 10**5: "y" * 10**5}, "not known")],
    ids=lambda value: next(iter(value))[:20] if isinstance(value, dict) else None,
)  # fmt: skip
def test_settings_that_cannot_be_honoured_are_refused_shortly(settings, message, pipe, tmp_path):
    refused(pipe, peft(tmp_path, **settings), message)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"r": ' + "9" * 5000 + "}", "x" * (10**6 + 1), "", "[]", '"\\ud800"'], ids=range(6)
)
def test_damaged_settings_are_refused(text, pipe, tmp_path):
    peft(tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    refused(pipe, tmp_path, "adapter_config")
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file(weights, tmp_path / "b.safetensors", {"lora_adapter_metadata": text})
    if text and text != "[]":
        refused(pipe, tmp_path / "b.safetensors", "lora_adapter_metadata")


def test_an_import_keeps_less_metadata_than_a_file_may_have(pipe, tmp_path):
    tensors = {"lora_up.weight": torch.ones(32, 2), "lora_down.weight": torch.ones(2, 32)}
    path = saved(tmp_path, tensors, metadata={"ss_tag_frequency": "x" * 2_000_000, "ss_steps": "100"})
    imported, _ = interop.import_adapter(pipe, path, tmp_path / "out", "Other")
    assert adapter_file.read_info(imported).training["metadata"] == {"ss_steps": "100"}
