"""All settings of the imported PEFT methods are honoured as by PEFT's own code, or refused by name."""

import copy
import dataclasses
import json
import re
import shutil

import pytest
import torch
from conftest import stir, tiny_pipe
from peft import (
    BOFTConfig,
    HRAConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.tuners.boft import layer as peft_boft
from torch import nn

from hra_diffusion import interop, pipeline
from hra_diffusion.interop.imports import AdapterImportError

EXACT = 1e-5
LAYERS = {
    "down_blocks.0.resnets.0.conv1": (8, 8, 3),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (16, 24),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k": (24, 16),
    "down_blocks.1.attentions.0.proj_in": (16, 8, 1),
}
"""Path -> (inputs, outputs) of a linear layer, (inputs, outputs, kernel size) of a convolution."""


class Pipe:
    """Stands for a pipeline with one component."""

    def __init__(self, unet):
        self.unet, self.base_name = unet, "tiny"


def tiny_base():
    """A pipeline with a few layers that have the names of a UNet's, all with biases."""
    torch.manual_seed(0)
    unet = nn.Module()
    unet.config = {"layers_per_block": 1, "up_block_types": ()}
    for path, (d_in, d_out, *kernel) in LAYERS.items():
        *parents, name = path.split(".")
        parent = unet
        for step in parents:
            if not hasattr(parent, step):
                parent.add_module(step, nn.Module())
            parent = getattr(parent, step)
        layer = nn.Conv2d(d_in, d_out, kernel[0], padding=kernel[0] // 2) if kernel else nn.Linear(d_in, d_out)
        parent.add_module(name, layer)
    return Pipe(unet)


ALL = ["conv1", "to_q", "to_k", "proj_in"]
LINEAR = ["to_q", "to_k"]
PLAIN = {
    "LoRA": (LoraConfig, {"r": 4, "lora_alpha": 6, "target_modules": ALL}),
    "LoRA on linear layers": (LoraConfig, {"r": 4, "lora_alpha": 6, "target_modules": LINEAR}),
    "DoRA": (LoraConfig, {"r": 4, "lora_alpha": 6, "target_modules": LINEAR, "use_dora": True}),
    "LoHa": (LoHaConfig, {"r": 3, "alpha": 5, "target_modules": ALL}),
    "LoKr": (LoKrConfig, {"r": 2, "alpha": 5, "target_modules": ALL}),
    "HRA": (HRAConfig, {"r": 4, "target_modules": ALL}),
    "OFT": (OFTConfig, {"r": 0, "oft_block_size": 4, "target_modules": ALL}),
    "BOFT": (BOFTConfig, {"boft_block_size": 4, "target_modules": ALL}),
}
AGAIN = {
    "LoRA on linear layers": {"init_lora_weights", "use_bdlora", "kasa_config", "velora_config", "arrow_config"},
    "DoRA": {"r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora", "init_lora_weights"},
}
"""Settings to test for the further configurations of a method; all settings are tested for the first one."""
EVERY = {
    "task_type": ["FEATURE_EXTRACTION"],
    "peft_type": ["BOFT", "OFT", "LORA", "LOHA", "LOKR", "HRA", "ADALORA"],
    "auto_mapping": [{"base_model_class": "UNet2DConditionModel", "parent_library": "diffusers"}],
    "peft_version": ["0.10.0", "0.17.1", "99.0.0"],
    "base_model_name_or_path": ["stable-diffusion-v1-5/stable-diffusion-v1-5"],
    "revision": ["fp16"],
    "inference_mode": [True],
    "r": [2, 64, 6],
    "target_modules": [["to_q", "conv1"], "all-linear", r".*attn1\.to_(q|k)", r"(.*\.)?conv1"],
    "exclude_modules": [["to_q"], r".*\.to_k", []],
    "layers_to_transform": [0, [1], []],
    "layers_pattern": ["down_blocks", ["down_blocks"]],
    "rank_pattern": [{"to_q": 3}, {"attn1.*": 3, "to_q": 6}, {}],
    "alpha_pattern": [{"to_q": 3}, {".*attn1.*": 9, "to_q": 2, "conv1": 0}, {"^down_blocks.0.resnets.0.conv1": 2}],
    "modules_to_save": [["conv1"], []],
    "bias": ["all", "lora_only"],
    "init_weights": [False],
    "module_dropout": [0.4],
    "rank_dropout": [0.4],
    "use_effective_conv2d": [True],
    "fan_in_fan_out": [True],
}
"""Setting -> values to test, for every method that has it."""
MORE = {
    LoraConfig: {
        "lora_alpha": [1, 0, 32],
        "lora_dropout": [0.3],
        "use_rslora": [True],
        "init_lora_weights": [False, "gaussian", "eva", "olora", "pissa", "pissa_niter_4", "corda", "loftq",
                              "orthogonal", "mica", "lora_ga", "another"],
        "megatron_config": [{"tensor_parallel": 1}],
        "megatron_core": ["another.core"],
        "trainable_token_indices": [[1, 2]],
        "loftq_config": [{"loftq_bits": 8, "loftq_iter": 1}],
        "eva_config": [{"rho": 1.0}],
        "corda_config": [{"corda_method": "kpm"}],
        "lora_ga_config": [{}],
        "use_dora": [True, False],
        "velora_config": [{"num_groups": 2}],
        "alora_invocation_tokens": [[1, 2]],
        "use_qalora": [True],
        "qalora_group_size": [4],
        "monteclora_config": [{"num_samples": 4}],
        "layer_replication": [[[0, 1], [0, 2]]],
        "runtime_config": [{"ephemeral_gpu_offload": True}],
        "lora_bias": [True],
        "target_parameters": [["attn1.to_q.weight"]],
        "use_bdlora": [{"target_modules_bd_a": ["to_q"], "nblocks": 2, "match_strict": False}],
        "arrow_config": [{"top_k": 1}],
        "kasa_config": [{"beta": 0.1}],
        "ensure_weight_tying": [True],
    },
    LoHaConfig: {"alpha": [1, 0, 32]},
    LoKrConfig: {
        "alpha": [1, 0, 32],
        "init_weights": [False, "lycoris"],
        "decompose_both": [True],
        "decompose_factor": [2, 4],
        "rank_dropout_scale": [True],
    },
    HRAConfig: {"apply_GS": [True]},
    OFTConfig: {
        "oft_block_size": [0, 2, 8],
        "coft": [True],
        "eps": [1e-4, 0.5],
        "block_share": [True],
        "use_cayley_neumann": [False],
        "num_cayley_neumann_terms": [1, 2, 3, 6],
    },
    BOFTConfig: {
        "boft_block_size": [0, 2, 8],
        "boft_block_num": [2, 3],
        "boft_n_butterfly_factor": [2, 0],
        "boft_dropout": [0.3],
    },
}  # fmt: skip
WRITTEN_ANYHOW = {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
"""Settings without an effect on training; they are changed in the file only."""
WITH = {"layers_pattern": {"layers_to_transform": [1]}, "eps": {"coft": True}, "r": {"oft_block_size": 0},
        "boft_block_num": {"boft_block_size": 0}}  # fmt: skip
"""Other settings that a setting requires to have an effect."""


def _with(config, setting):
    known = {field.name for field in dataclasses.fields(config)}
    return {name: value for name, value in WITH.get(setting, {}).items() if name in known}


def values(config, setting):
    """The values to test. A setting that the table does not list, of a newer PEFT, gets a value that is no default.

    Settings that methods share are tested at all values with the first method only.
    """
    shared = EVERY.get(setting, ["something new"])
    return MORE[config].get(setting, shared if config is LoraConfig else shared[:2])


def write_folder(config, folder):
    """Write a PEFT folder with trained weights for the tiny base."""
    model = get_peft_model(copy.deepcopy(tiny_base().unet), config)
    stir([p for n, p in sorted(model.named_parameters()) if p.requires_grad or "lora_" in n], by=0.1)
    model.save_pretrained(folder)


def edit(folder, **settings):
    place = folder / "adapter_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | settings))


def theirs(folder):
    """All parameters after PEFT loads and merges the folder, or None if PEFT can't load it."""
    try:
        merged = PeftModel.from_pretrained(copy.deepcopy(tiny_base().unet), folder).merge_and_unload()
    except Exception:
        return None
    return merged.state_dict()


def ours(folder, output):
    """All parameters after import and merge, or the error message."""
    pipe = tiny_base()
    try:
        place, _ = interop.import_adapter(pipe, folder, output, "Any")
    except AdapterImportError as error:
        return str(error)
    pipeline.load(pipe, place)
    pipeline.merge(pipe)
    return {key: value for key, value in pipe.unet.state_dict().items() if "adapters" not in key}


def problem(setting, found, expected):
    """ "" if the result equals PEFT's or the error names the setting; otherwise the problem."""
    if isinstance(found, str):
        return "" if re.search(rf"\b{setting}\b", found) else f"refused, but without naming it: {found}"
    if expected is None:
        return "PEFT does not load it, the import does"
    distance = max(float((found[k] - w).norm() / w.norm()) for k, w in expected.items())
    return "" if distance < EXACT else f"{distance:.2g} from PEFT's"


@pytest.fixture(autouse=True)
def no_model_cards(monkeypatch):
    """PEFT spends half of its saving time on a README."""
    monkeypatch.setattr(PeftModel, "create_or_update_model_card", lambda model, folder: None)


def folders(config, plain, setting, value, output):
    """Folders with a setting at a value, by how they were made: trained with it, or changed in the file afterwards.

    PEFT can't make all of them for every base.
    """
    for way, options in (("trained", plain | _with(config, setting) | {setting: value}), ("edited", None)):
        folder = output / f"{way}-{setting}-{len(list(output.iterdir()))}"
        if options is not None and setting in WRITTEN_ANYHOW:
            continue
        if options is None:
            shutil.copytree(output / "plain", folder)
            edit(folder, **{setting: value})
        else:
            try:
                write_folder(config(**options), folder)
            except Exception:
                continue
        yield way, folder


@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.filterwarnings("ignore")
def test_every_setting_is_honoured_or_refused_by_name(method, tmp_path):
    """For each field of PEFT's class at other values, the import equals what PEFT loads, or names the field."""
    config, plain = PLAIN[method]
    write_folder(config(**plain), tmp_path / "plain")
    wrong, honoured = {}, set()
    settings = {field.name for field in dataclasses.fields(config)}
    for setting in sorted(settings & AGAIN.get(method, settings)):
        for value in values(config, setting):
            for way, folder in folders(config, plain, setting, value, tmp_path):
                found, expected = ours(folder, tmp_path), theirs(folder)
                if reason := problem(setting, found, expected):
                    wrong[f"{setting}={value!r}, {way}"] = reason
                elif not isinstance(found, str):
                    honoured.add(setting)
    assert not wrong, "\n".join(f"{case}: {reason}" for case, reason in wrong.items())
    assert (
        settings & AGAIN.get(method, {"r", "target_modules", "exclude_modules"}) & {"r", "init_lora_weights"}
        <= honoured
    )


class BlockDiagonal:
    """What PEFT's CUDA extension computes: (m, n, b, b) to (m, n b, n b)."""

    @staticmethod
    def apply(blocks):
        return torch.stack([torch.block_diag(*stage) for stage in blocks])


@pytest.mark.filterwarnings("ignore")
def test_boft_of_several_stages_is_that_of_pefts_cuda_extension(monkeypatch, tmp_path):
    monkeypatch.setattr(peft_boft, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(peft_boft, "FastBlockDiag", BlockDiagonal)
    config = BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=3, target_modules=["to_q"])
    write_folder(config, tmp_path / "boft")
    assert not problem("stages", ours(tmp_path / "boft", tmp_path), theirs(tmp_path / "boft"))
    edit(tmp_path / "boft", boft_n_butterfly_factor=2)
    assert "boft_n_butterfly_factor = 2, its tensors 3" in ours(tmp_path / "boft", tmp_path)


def changes(pipe, source):
    """The change of each layer's weight by an import, by path."""
    imported, places, _ = interop.parse_adapter(pipe, source)
    return {
        path: imported.tensors[f"{component}.{path}.up"] @ imported.tensors[f"{component}.{path}.down"]
        for component, path in places
    }


@pytest.mark.filterwarnings("ignore")
def test_the_weight_file_instead_of_its_folder(tmp_path):
    """The settings in the same folder are read as well: alpha, and orthonormalised reflections."""
    write_folder(LoraConfig(r=4, lora_alpha=16, target_modules=ALL), tmp_path / "lora")
    whole, alone = (changes(tiny_base(), tmp_path / "lora" / end) for end in ("", "adapter_model.safetensors"))
    assert whole and all(torch.equal(alone[path], change) for path, change in whole.items())
    write_folder(HRAConfig(r=4, apply_GS=True, target_modules=ALL), tmp_path / "hra")
    imported, _, _ = interop.parse_adapter(tiny_base(), tmp_path / "hra" / "adapter_model.safetensors")
    assert imported.method == "hra" and imported.options["orthogonality"] == float("inf")


def wrapped(encoder):
    """A text encoder within ``text_model``, as in transformers 4."""
    model = nn.Module()
    model.text_model = encoder
    return model


@pytest.mark.filterwarnings("ignore")
def test_patterns_written_by_transformers_4(pipe, tmp_path):
    """They name layers with the "text_model." that transformers 5 removed. The first match in the file decides."""
    options = {
        "alpha_pattern": {r"^text_model\.encoder\.layers\.0\.self_attn\.q_proj": 3, "q_proj": 30, "self_attn.*": 7},
        "rank_pattern": {r"text_model\.encoder\.layers\.1\..*": 2, "v_proj": 5},
    }
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "k_proj", "v_proj"], **options)
    model = get_peft_model(wrapped(copy.deepcopy(pipe.text_encoder)), config)
    stir([p for n, p in model.named_parameters() if "lora_" in n])
    model.save_pretrained(tmp_path / "text_encoder")
    before = pipe.text_encoder.state_dict()
    merged = model.merge_and_unload().text_model.state_dict()
    found = changes(pipe, tmp_path / "text_encoder")
    assert len(found) == 6
    for path, change in found.items():
        assert (before[f"{path}.weight"] + change - merged[f"{path}.weight"]).norm() < EXACT, path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("whole", [True, False], ids=["pipeline", "single model"])
def test_settings_in_the_metadata_of_a_file(whole, pipe, tmp_path):
    """As written by diffusers: with the component's name for a pipeline, without it for a single model."""
    config = LoraConfig(r=4, lora_alpha=6, target_modules=LINEAR, use_rslora=True,
                        alpha_pattern={"attn1.to_q": 3, "to_q": 50}, rank_pattern={"to_k": 2})  # fmt: skip
    before = copy.deepcopy(pipe.unet.state_dict())
    pipe.unet.add_adapter(config)
    stir([p for n, p in pipe.unet.named_parameters() if "lora_" in n])
    if whole:
        state, metadata = get_peft_model_state_dict(pipe.unet), pipe.unet.peft_config["default"].to_dict()
        pipe.save_lora_weights(tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=metadata)
    else:
        pipe.unet.save_lora_adapter(tmp_path)
    pipe.unet.fuse_lora()
    pipe.unet.unload_lora()
    after = pipe.unet.state_dict()
    file = next(tmp_path.glob("*.safetensors"))
    found = changes(tiny_pipe(), file)
    assert len(found) == sum("attn" in key and key.endswith(("to_q.weight", "to_k.weight")) for key in before)
    for path, change in found.items():
        assert (before[f"{path}.weight"] + change - after[f"{path}.weight"]).norm() < EXACT, path


@pytest.mark.parametrize("value", ["on", 0.5, ["a"], {"b": 1}, True])
@pytest.mark.filterwarnings("ignore")
def test_a_setting_of_a_newer_peft_is_refused_unless_it_is_off(value, tmp_path):
    write_folder(LoraConfig(r=4, target_modules=LINEAR), tmp_path / "new")
    edit(tmp_path / "new", use_something=False, something_config=None, more_modules=[], factor=0.0)
    assert len(changes(tiny_base(), tmp_path / "new")) == 2
    edit(tmp_path / "new", use_something=value)
    with pytest.raises(AdapterImportError, match=r"its setting use_something = .* can't be honoured: .*not known"):
        interop.parse_adapter(tiny_base(), tmp_path / "new")
