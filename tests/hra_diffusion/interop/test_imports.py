"""Imports of files made by other programs' code, or by the formula of the method, with the same outputs."""

import functools
import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from conftest import PIPES, everything, relative, stir, tiny_pipe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loaders import BOTH, each_form_by_format
from peft import HRAConfig, LoraConfig, OFTConfig, get_peft_model
from safetensors.torch import load_file, save_file

from hra_diffusion import interop, pipeline
from hra_diffusion.adapters import adapter_file, attachment, targets
from hra_diffusion.adapters.layer import weight_with_adapters
from hra_diffusion.adapters.linear_map import as_matrix, unsupported_reason
from hra_diffusion.interop.imports import AdapterImportError
from hra_diffusion.models.families.architectures import SD1, on_meta

EXACT = 1e-4
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def import_and_load(kind, path, output):
    """Import a file for a new tiny pipeline and load it. Returns the pipeline and the report."""
    pipe = PIPES[kind]()
    place, report = interop.import_adapter(pipe, path, output, "Other")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.load(pipe, place)
    return pipe, report


@each_form_by_format("kohya", "diffusers", "peft")
def test_exports_can_be_imported(method, format, tmp_path):
    export_and_import("sd", method, format, tmp_path)


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("format", ["kohya", "diffusers", "peft"])
def test_exports_for_other_bases_can_be_imported(kind, method, format, tmp_path):
    export_and_import(kind, method, format, tmp_path)


def export_and_import(kind, method, format, tmp_path):
    pipe = PIPES[kind]()
    for model in pipeline.components(pipe).values():
        attachment.attach(model, method, {"rank": 4}, name="Rex")
        stir(attachment.adapter_parameters(model, "Rex").values())
    done = interop.export(pipe, "Rex", format, tmp_path / ("rex" if format == "peft" else "rex.safetensors"))
    back, report = import_and_load(kind, done.path, tmp_path / "out")
    assert report.used == report.keys and not report.skipped
    assert report.layers == {
        name: len(targets.find_targets(m)) for name, m in pipeline.components(PIPES[kind]()).items()
    }
    assert relative(everything(back), everything(pipe)) < EXACT
    if (method, format) == ("hra", "peft"):
        assert adapter_file.read_info(tmp_path / "out" / "Other.safetensors").method == "hra", "it stays what it is"


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("locon", {}),
        ("locon", {"use_tucker": True}),
        ("locon", {"dora_wd": True}),
        ("locon", {"dora_wd": True, "wd_on_output": False}),
        ("loha", {}),
        ("loha", {"use_tucker": True}),
        ("loha", {"dora_wd": True}),
        ("lokr", {"factor": 4}),
        ("lokr", {"factor": 4, "decompose_both": True}),
        ("lokr", {"factor": 2, "use_tucker": True}),
        ("lokr", {"factor": 4, "full_matrix": True}),
        ("full", {}),
        ("diag-oft", {}),
        ("diag-oft", {"constraint": 0.01, "rescaled": True}),
        ("boft", {}),
        ("boft", {"constraint": 0.01, "rescaled": True}),
        ("glora", {}),
        ("ia3", {}),
        ("ia3", {"train_on_input": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "plain",
)
def test_lycoris_files(algorithm, options, tmp_path):
    """All algorithms on linear and convolution layers, from LyCORIS' own modules."""
    lycoris = pytest.importorskip("lycoris", reason="needs lycoris-lora")
    pipe = tiny_pipe()
    lycoris.LycorisNetwork.apply_preset({"target_module": ["Transformer2DModel", "ResnetBlock2D"]})
    settings = {"conv_dim": 3, "conv_alpha": 3, "train_norm": False, "bypass_mode": False} | options
    network = lycoris.create_lycoris(pipe.unet, 1.0, 3, 2, algo=algorithm, **settings)
    network.apply_to()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    stir([p for name, p in network.named_parameters() if not name.endswith("bias")], by=0.1)
    assert any(not torch.equal(p, before[name]) for name, p in network.named_parameters())
    network.eval()
    theirs = everything(pipe)
    network.save_weights(str(tmp_path / "a.safetensors"), torch.float32, {})
    back, report = import_and_load("sd", tmp_path / "a.safetensors", tmp_path)
    assert set(report.skipped) <= {"it changes biases; adapters here change weights only"}
    assert relative(everything(back), theirs) < EXACT and relative(everything(tiny_pipe()), theirs) > 10 * EXACT


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, lora_alpha=7, target_modules=ATTENTION),
        LoraConfig(r=4, lora_alpha=7, target_modules=ATTENTION, use_rslora=True),
        LoraConfig(r=4, lora_alpha=7, target_modules=ATTENTION, use_dora=True),
        LoraConfig(r=4, target_modules=[*ATTENTION, "conv1"], rank_pattern={"to_q": 2}, alpha_pattern={"to_k": 3}),
        LoraConfig(r=3, target_modules=["conv1", "conv_shortcut"], use_dora=True),
        HRAConfig(r=4, target_modules=ATTENTION),
        HRAConfig(r=3, target_modules=ATTENTION),
        HRAConfig(r=4, target_modules=ATTENTION, apply_GS=True),
        OFTConfig(oft_block_size=4, r=0, target_modules=ATTENTION),
        OFTConfig(oft_block_size=4, r=0, target_modules=ATTENTION, block_share=True, use_cayley_neumann=False),
        OFTConfig(oft_block_size=4, r=0, target_modules=ATTENTION, num_cayley_neumann_terms=3),
    ],
    ids=lambda config: f"{config.peft_type.value}-{config.r}",
)
def test_peft_folders(config, tmp_path):
    pipe = tiny_pipe()
    model = get_peft_model(pipe.unet, config)
    stir([p for p in model.parameters() if p.requires_grad], by=0.1)
    pipe.register_modules(unet=model.get_base_model())
    theirs = everything(pipe)
    model.save_pretrained(tmp_path / "peft")
    back, report = import_and_load("sd", tmp_path / "peft", tmp_path)
    assert not report.skipped and relative(everything(back), theirs) < EXACT


def random_factors(pipe, rank=2):
    """Random (up, down) for all attention layers of the UNet, and the pipeline's outputs with them."""
    generator = torch.Generator().manual_seed(3)
    pairs = {}
    for path in targets.find_targets(pipe.unet):
        weight = pipe.unet.get_submodule(path).weight
        up, down = (
            torch.randn(shape, generator=generator) * 0.1 for shape in ((len(weight), rank), (rank, weight.shape[1]))
        )
        pairs[path] = up, down
    plain = {path: pipe.unet.get_submodule(path).weight.detach().clone() for path in pairs}
    with torch.no_grad():
        for path, (up, down) in pairs.items():
            pipe.unet.get_submodule(path).weight += up @ down
        outputs = everything(pipe)
        for path, weight in plain.items():
            pipe.unet.get_submodule(path).weight.copy_(weight)
    return pairs, outputs


STYLES = {
    "attention processors": lambda path: path.replace(".to_", ".processor.to_").removesuffix(".0") + "_lora.{}.weight",
    "with a prefix": lambda path: (
        "unet." + path.replace(".to_", ".processor.to_").removesuffix(".0") + "_lora.{}.weight"
    ),
    "lora.down": lambda path: f"unet.{path}.lora.{{}}.weight",
    "lora_linear_layer": lambda path: f"unet.{path}.lora_linear_layer.{{}}.weight",
}


@pytest.mark.parametrize("style", STYLES)
def test_older_diffusers_files(style, tmp_path, pipe):
    pairs, expected = random_factors(pipe)
    tensors = {}
    for path, (up, down) in pairs.items():
        tensors |= {STYLES[style](path).format("up"): up, STYLES[style](path).format("down"): down}
    save_file(tensors, tmp_path / "old.safetensors")
    back, report = import_and_load("sd", tmp_path / "old.safetensors", tmp_path)
    assert report.used == report.keys == 2 * len(pairs) and relative(everything(back), expected) < EXACT


def test_kohya_with_alphas_and_mixed_ranks_in_half_precision(tmp_path, pipe):
    pairs, _ = random_factors(pipe)
    tensors, plain = {}, {}
    for number, (path, (up, down)) in enumerate(pairs.items()):
        if number % 2:
            up, down = up[:, :1], down[:1]
        key = "lora_unet_" + path.replace(".", "_")
        tensors |= {
            f"{key}.lora_up.weight": up.half().contiguous(),
            f"{key}.lora_down.weight": down.half().contiguous(),
        }
        tensors[f"{key}.alpha"] = torch.tensor(float(number))  # 0 means alpha = rank
        plain[path] = (up.half().float() @ down.half().float()) * ((number or len(down)) / len(down))
    save_file(tensors, tmp_path / "kohya.safetensors", {"ss_steps": "100", "modelspec.trigger_phrase": "zwx"})
    back, report = import_and_load("sd", tmp_path / "kohya.safetensors", tmp_path)
    assert sorted(report.ranks) == [1, 2] and report.kinds == {"LoRA": len(pairs)}
    for path, change in plain.items():
        layer = back.unet.get_submodule(path)
        assert relative(weight_with_adapters(layer, (("Other", 1.0),)) - layer.weight, change) < EXACT
    info = adapter_file.read_info(tmp_path / "Other.safetensors")
    assert info.training["metadata"]["ss_steps"] == "100" and info.trigger == "zwx"


def test_an_import_of_mixed_ranks_can_be_saved_and_exported(tmp_path, pipe):
    pairs, _ = random_factors(pipe, rank=3)
    tensors = {
        f"unet.{p}.lora.{k}.weight": t for p, (up, down) in pairs.items() for k, t in (("up", up), ("down", down))
    }
    first = next(iter(pairs))
    tensors |= {f"unet.{first}.lora.up.weight": torch.ones(pairs[first][0].shape[0], 7) / 9,
                f"unet.{first}.lora.down.weight": torch.ones(7, pairs[first][1].shape[1]) / 9}  # fmt: skip
    save_file(tensors, tmp_path / "a.safetensors")
    back, _ = import_and_load("sd", tmp_path / "a.safetensors", tmp_path)
    pipeline.save(back, tmp_path / "again.safetensors", "Other")
    again = tiny_pipe()
    pipeline.load(again, tmp_path / "again.safetensors")
    assert relative(everything(again), everything(back)) < 1e-6
    other = tiny_pipe()
    other.load_lora_weights(str(interop.export(back, "Other", "kohya", tmp_path / "out.safetensors").path))
    assert relative(everything(other), everything(back)) < EXACT


def full_size_sd15():
    """The components of Stable Diffusion 1.5 that an import needs, on the meta device."""
    unet, (encoder,) = on_meta(SD1.build_denoiser), on_meta(SD1.build_encoders)
    return SimpleNamespace(unet=unet, text_encoder=encoder, base_name="sd15")


@pytest.mark.parametrize(
    ("file", "layers"),
    [
        ("catundchat_sd15_attention_processor.safetensors", {"unet": 128}),
        ("cloneofsimo_analog_svd_rank4.safetensors", {"unet": 144, "text_encoder": 48}),
    ],
)
def test_all_keys_of_real_files_are_used(shared, file, layers):
    """256 of 256 and 384 of 384 keys; a wrongly matched layer would have another shape."""
    path = shared / "data" / "adapters" / file
    imported, _, report = interop.parse_adapter(full_size_sd15(), path)
    assert report.used == report.keys == 2 * sum(layers.values()) and report.layers == layers
    assert report.ranks == {4: sum(layers.values())} and imported.options == {"rank": 4} and not imported.ranks


def test_numbered_layers_are_in_the_order_of_the_old_library(shared):
    """Feed-forward before cross-attention, the middle block last; keys, values, queries in text encoders."""
    path = shared / "data" / "adapters" / "cloneofsimo_analog_svd_rank4.safetensors"
    imported, _, _ = interop.parse_adapter(full_size_sd15(), path)
    theirs, block = load_file(path), "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    order = {0: f"{block}.attn1.to_q", 4: f"{block}.ff.net.0.proj", 6: f"{block}.attn2.to_k",
             143: "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"}  # fmt: skip
    for number, layer in order.items():
        assert torch.equal(imported.tensors[f"{layer}.up"], theirs[f"unet:{number}:up"].float())
    for number, layer in enumerate(("k_proj", "v_proj", "q_proj", "out_proj")):
        up = imported.tensors[f"text_encoder.encoder.layers.0.self_attn.{layer}.up"]
        assert torch.equal(up, theirs[f"text_encoder:{number}:up"].float())


def good(pipe):
    pairs, _ = random_factors(pipe)
    return {
        f"lora_unet_{path.replace('.', '_')}.lora_{kind}.weight": tensor
        for path, (up, down) in pairs.items()
        for kind, tensor in (("up", up), ("down", down))
    }


def damaged(tensors, change):
    tensors = dict(tensors)
    change(tensors, next(iter(tensors)))
    return tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, k: t.pop(k), "up is missing; the file is incomplete"),
        (lambda t, k: t.pop(k.replace("up", "down", 1)), "missing|its up and down"),
        (lambda t, k: t.update({k: t[k][:, :1].contiguous()}), "have different ranks"),
        (lambda t, k: t.update({k: t[k][:-1].contiguous()}), "it is for another base"),
        (lambda t, k: t.update({k: t[k] * float("nan")}), "NaN or infinite values"),
        (lambda t, k: t.update({k: t[k].flatten()}), "different ranks|don't fit"),
        (lambda t, k: t.update({k.replace("lora_unet_", "lycoris_"): t[k].clone()}), "twice"),
    ],
    ids=["no up", "no down", "rank", "shape", "nan", "flat", "twice"],
)
def test_malformed_files_are_refused_with_the_name_of_the_layer(change, message, tmp_path, pipe):
    save_file(damaged(good(pipe), change), tmp_path / "bad.safetensors")
    with pytest.raises(AdapterImportError, match=message):
        interop.import_adapter(pipe, tmp_path / "bad.safetensors", tmp_path / "out", "Bad")
    assert not (tmp_path / "out").exists()


def header(**tensors) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        b"\xff" * 64,
        (10**9).to_bytes(8, "little") + b"{}",
        header(a={"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}),
        header(a={"dtype": "F32", "shape": [10**5, 10**5], "data_offsets": [0, 4]}) + b"\x00" * 4,
        b"PK\x03\x04 a pickle",
    ],
)
def test_damaged_files_are_refused(content, tmp_path, pipe):
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(AdapterImportError, match=r"not a complete safetensors file|no tensors"):
        interop.parse_adapter(pipe, tmp_path / "bad.safetensors")


LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
SUFFIXES = ["lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "dora_scale", "hada_w1_a", "hada_w1_b",
            "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
            "diff", "diff_b", "hra_u", "oft_R.weight", "lora_magnitude_vector", "w_norm", "nonsense", "weight",
            "oft_R.scaled_oft", "oft_blocks", "rescale", "a1.weight", "a2.weight", "b1.weight", "b2.weight",
            "on_input"]  # fmt: skip
SIZES = st.sampled_from([0, 1, 2, 3, 32])
TENSORS = st.builds(
    lambda shape, dtype: torch.full(shape, 0.5).to(dtype),
    st.lists(SIZES, max_size=4),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool]),
)
SETTINGS = st.dictionaries(
    st.sampled_from(
        [
            "peft_type",
            "r",
            "lora_alpha",
            "alpha_pattern",
            "rank_pattern",
            "use_rslora",
            "apply_GS",
            "use_cayley_neumann",
            "target_modules",
            "layers_to_transform",
            "init_lora_weights",
            "peft_version",
            "bias",
            "new",
        ]
    ),
    st.one_of(
        st.none(),
        st.integers(-3, 9),
        st.sampled_from(["", "HRA", "OFT", "LOKR", "pissa", "0.21", "a(*"]),
        st.lists(st.integers()),
        st.dictionaries(st.sampled_from(["to_q", "(*"]), st.floats()),
    ),
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.dictionaries(st.sampled_from(SUFFIXES), TENSORS, min_size=1, max_size=5), st.none() | SETTINGS)
def test_no_file_crashes_the_import(tmp_path_factory, tensors, peft):
    """Any tensors under any names give an adapter that loads and a report, or an error that names the layer."""
    folder = tmp_path_factory.mktemp("fuzz")
    save_file({f"{LAYER}.{suffix}": tensor for suffix, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    if peft is not None:
        (folder / "adapter_config.json").write_text(json.dumps(peft))
    pipe = fuzzed_pipe()
    try:
        place, report = interop.import_adapter(pipe, folder, folder, "Any")
    except AdapterImportError as error:
        assert str(folder) in str(error)
        return
    assert report.used <= report.keys
    pipeline.load(pipe, place)
    pipeline.unload(pipe, "Any")


@functools.cache
def fuzzed_pipe():
    return tiny_pipe()


def test_a_truncated_file_is_refused(tmp_path, pipe):
    save_file(good(pipe), tmp_path / "bad.safetensors")
    whole = (tmp_path / "bad.safetensors").read_bytes()
    (tmp_path / "bad.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterImportError, match="not a complete safetensors file"):
        interop.parse_adapter(pipe, tmp_path / "bad.safetensors")


def test_skipped_keys_are_reported_with_the_reason(tmp_path, pipe):
    """Missing components, biases, normalisation layers and textual inversions are skipped; the rest is imported."""
    strange = {
        "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": "this base has no text_encoder_2",
        "lora_unet_no_such_layer.lora_up.weight": "this base has no such layer in its unet",
        "lora_unet_conv_in.diff_b": "it changes biases; adapters here change weights only",
        "lora_unet_conv_norm_out.w_norm": "it changes normalisation layers; adapters here change linear and conv "
        "layers",
        "emb_params": "it is a textual inversion, not an adapter",
        "something": "its name is not known",
    }
    save_file(good(pipe) | {key: torch.zeros(3) for key in strange}, tmp_path / "odd.safetensors")
    _, _, report = interop.parse_adapter(pipe, tmp_path / "odd.safetensors")
    assert report.skipped == {reason: [key] for key, reason in strange.items()}
    assert report.used == report.keys - len(strange) == len(good(tiny_pipe()))


def test_a_file_for_another_base_is_refused(tmp_path, pipe):
    xl = PIPES["sdxl"]()
    attachment.attach(xl.text_encoder_2, "lora", {"rank": 2}, name="Rex")
    interop.export(xl, "Rex", "kohya", tmp_path / "xl.safetensors")
    with pytest.raises(
        AdapterImportError, match=r"contains no adapter for tiny: this base has no text_encoder_2 \(24 keys\)"
    ):
        interop.parse_adapter(pipe, tmp_path / "xl.safetensors")


def test_pickles_and_adapter_files_of_hra_diffusion_are_not_imported(tmp_path, pipe):
    (tmp_path / "lora.pt").write_bytes(b"PK")
    with pytest.raises(
        AdapterImportError, match=r"is a pickle, which can run code when opened; get it as .safetensors"
    ):
        interop.parse_adapter(pipe, tmp_path / "lora.pt")
    attachment.attach(pipe.unet, "lora", name="Rex")
    pipeline.save(pipe, tmp_path / "rex.safetensors", "Rex")
    with pytest.raises(AdapterImportError, match="is an adapter of hra-diffusion already"):
        interop.parse_adapter(pipe, tmp_path / "rex.safetensors")
    assert as_matrix(pipe.unet.conv_in).ndim == 2 and not unsupported_reason(pipe.unet.conv_in)
