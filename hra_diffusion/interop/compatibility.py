"""Compatibility table: how other programs load each kind of export. The rows are tested with the programs' loaders."""

import functools
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open

from hra_diffusion import pipeline
from hra_diffusion.adapters import attachment
from hra_diffusion.adapters.adapter_file import AdapterInfo
from hra_diffusion.adapters.block_rotation import BlockConfig
from hra_diffusion.adapters.registry import get_method
from hra_diffusion.adapters.rotation import ReflectionConfig
from hra_diffusion.interop import checkpoint, checkpoint_keys, textual_inversion
from hra_diffusion.interop.exports import Exported

EXACTLY, WRONGLY, UNUSABLE, BY_FORMAT = "exactly", "not exactly", "unusable", "by file format"

_UNETS, _SD3, _FLUX2 = ("sd", "sdxl"), ("sd3",), ("flux2",)
_TRANSFORMERS = _SD3 + _FLUX2
_TITLES = {_UNETS: "SD 1, 2, XL", _SD3: "SD 3.5", _FLUX2: "FLUX.2", _TRANSFORMERS: "SD 3.5, FLUX.2"}


@dataclass(frozen=True)
class Row:
    """How one program loads one form of one format for the base models of some families.

    ``loads`` is "exactly", "not exactly" or "unusable" if the program's own loader was run, otherwise "by file format".
    ``checked`` is the version and method of the check for programs whose loader is not part of the test suite.
    """

    format: str
    form: str
    program: str
    loads: str
    how: str
    checked: str = ""
    bases: tuple[str, ...] = _UNETS

    @property
    def verdict(self) -> str:
        """How the program loads the file, with the version that was checked."""
        return f"{self.loads}, {self.checked}" if self.checked else self.loads


_REMEDY = "--lora-rank N, or --format merged"
_NORMS = (
    "it divides by the norms of the base's weights, not of the changed ones: an error of about 5 % of the change, more "
    "for a large change"
)
_BASE_NORM = f"{_NORMS}; {_REMEDY}"
_DROPS = "it drops the magnitudes (dora_scale) without a message"
_NOTHING = "it loads no layer of the file; --format diffusers"
_COMFYUI = "by the source of 17358c8f"  # comfy/lora.py; comfy/utils.py at 09708eae
_INPUT_NORM = f"it divides by the norms of inputs, not of outputs, which destroys the weights; {_REMEDY}"
TABLE = (
    Row("kohya", "LoRA", "diffusers", EXACTLY, "pipe.load_lora_weights(file)"),
    Row("kohya", "LoRA", "LyCORIS", EXACTLY, "its kohya loader (SD 1 and 2)"),
    Row("kohya", "LoRA", "ComfyUI", EXACTLY, "put it in models/loras", "checked at a125cd84"),
    Row("kohya", "LoRA", "AUTOMATIC1111", EXACTLY, "put it in models/Lora", "checked at 1.10.1"),
    Row("kohya", "LoRA", "Forge", EXACTLY, "put it in models/Lora", "checked at dfdcbab6"),
    Row("kohya", "LoRA", "InvokeAI", EXACTLY, "add it in the model manager", "checked at 8e71a8a5"),
    Row("kohya", "LoRA", "sd-scripts", EXACTLY, "--network_module networks.lora --network_weights FILE",
        "checked at 48d368fa"),
    Row("kohya", "LoRA", "OneTrainer", EXACTLY, "as *LoRA base model*", "checked at 23df3832"),
    Row("kohya", "DoRA", "LyCORIS", EXACTLY, "its kohya loader (SD 1 and 2)"),
    Row("kohya", "DoRA", "OneTrainer", EXACTLY, "as *LoRA base model*, with *Decompose Weights (DoRA)* and *Apply on "
        "output axis* on", "checked at 23df3832"),
    Row("kohya", "DoRA", "diffusers", WRONGLY, "it drops the magnitudes; --format diffusers"),
    Row("kohya", "DoRA", "ComfyUI", WRONGLY, _BASE_NORM, "checked at a125cd84"),
    Row("kohya", "DoRA", "Forge", WRONGLY, _BASE_NORM, "checked at dfdcbab6"),
    Row("kohya", "DoRA", "sd-scripts", WRONGLY, f"{_DROPS}; {_REMEDY}", "checked at 48d368fa"),
    Row("kohya", "DoRA", "InvokeAI", UNUSABLE, _INPUT_NORM, "checked at 8e71a8a5"),
    Row("kohya", "DoRA", "AUTOMATIC1111", UNUSABLE, _INPUT_NORM, "by the source of 1.10.1"),
    Row("diffusers", "LoRA", "diffusers", EXACTLY, "pipe.load_lora_weights(folder)"),
    Row("diffusers", "DoRA", "diffusers", EXACTLY, "pipe.load_lora_weights(folder)"),
    Row("peft", "HRA", "PEFT", EXACTLY, "PeftModel.from_pretrained(pipe.unet, folder/unet)"),
    Row("peft", "OFT", "PEFT", EXACTLY, "PeftModel.from_pretrained(pipe.unet, folder/unet)"),
    Row("peft", "LoRA", "PEFT", EXACTLY, "PeftModel.from_pretrained(pipe.unet, folder/unet)"),
    Row("peft", "DoRA", "PEFT", EXACTLY, "PeftModel.from_pretrained(pipe.unet, folder/unet)"),
    Row("merged", "folder", "diffusers", EXACTLY, "from_pretrained(folder)"),
    Row("merged", "single file", "diffusers", EXACTLY, "from_single_file(file)"),
    Row("merged", "single file", "AUTOMATIC1111, Forge, ComfyUI, InvokeAI, sd-scripts", BY_FORMAT,
        "put it in the checkpoint folder"),
    Row("kohya", "LoRA", "diffusers", EXACTLY, "pipe.load_lora_weights(file)", bases=_FLUX2),
    Row("kohya", "LoRA", "diffusers", UNUSABLE, _NOTHING, bases=_SD3),
    Row("kohya", "LoRA", "ComfyUI", BY_FORMAT, "put it in models/loras", _COMFYUI, _TRANSFORMERS),
    Row("kohya", "LoRA", "sd-scripts", BY_FORMAT, "--network_module networks.lora_sd3 --network_weights FILE; it loads "
        "layers of the blocks only", "by the source of 48d368fa", _SD3),
    Row("kohya", "LoRA", "musubi-tuner", BY_FORMAT, "--network_module networks.lora_flux_2 --network_weights FILE; it "
        "loads layers of the blocks only", "by the source of 30c658c4", _FLUX2),
    Row("kohya", "DoRA", "diffusers", WRONGLY, "it drops the magnitudes; --format diffusers", bases=_FLUX2),
    Row("kohya", "DoRA", "diffusers", UNUSABLE, _NOTHING, bases=_SD3),
    Row("kohya", "DoRA", "ComfyUI", WRONGLY, f"{_NORMS}; --lora-rank N", _COMFYUI, _TRANSFORMERS),
    Row("kohya", "DoRA", "sd-scripts", WRONGLY, f"{_DROPS}; --lora-rank N", "by the source of 48d368fa", _SD3),
    Row("kohya", "DoRA", "musubi-tuner", WRONGLY, f"{_DROPS}; --lora-rank N", "by the source of 30c658c4", _FLUX2),
    Row("diffusers", "LoRA", "diffusers", EXACTLY, "pipe.load_lora_weights(folder)", bases=_TRANSFORMERS),
    Row("diffusers", "LoRA", "ComfyUI", BY_FORMAT, "put it in models/loras", _COMFYUI, _SD3),
    Row("diffusers", "LoRA", "ComfyUI", BY_FORMAT, "put it in models/loras; it does not load layers of the modulation "
        "and of the time embedding", _COMFYUI, _FLUX2),
    Row("diffusers", "DoRA", "diffusers", EXACTLY, "pipe.load_lora_weights(folder)", bases=_TRANSFORMERS),
    Row("diffusers", "DoRA", "ComfyUI", WRONGLY, "it drops the magnitudes; --lora-rank N", _COMFYUI, _TRANSFORMERS),
    *(Row("peft", form, "PEFT", EXACTLY, "PeftModel.from_pretrained(pipe.transformer, folder/transformer)",
          bases=_TRANSFORMERS) for form in ("HRA", "OFT", "LoRA", "DoRA")),
    Row("merged", "folder", "diffusers", EXACTLY, "from_pretrained(folder)", bases=_TRANSFORMERS),
)  # fmt: skip


READ_BUNDLES = ("AUTOMATIC1111", "Forge")
"""Programs that read embeddings in a LoRA file. diffusers refuses such a file; others may ignore them."""


def rows(exported: Exported) -> list[Row]:
    """The rows that apply to this export."""
    if exported.bundled:
        return [row for row in rows(replace(exported, bundled=False)) if row.program in READ_BUNDLES]
    form = exported.form
    if exported.format == "merged":
        form = "single file" if exported.path.suffix == ".safetensors" else "folder"
    return [row for row in TABLE if (row.format, row.form) == (exported.format, form) and exported.family in row.bases]


def family_of(info: AdapterInfo) -> str:
    """The family of an adapter's base model, by the names of its layers; "sd" also stands for "sdxl"."""
    if (layers := info.fingerprint.get("transformer")) is None:
        return "sd"
    return "flux2" if any(path.startswith("single_transformer_blocks.") for path in layers) else "sd3"


def expected_exports(method: str, family: str = "sd") -> list[Row]:
    """The rows that apply to exports of a method for a family without a rank limit and at strength 1."""
    form, native = _form(method), get_method(method).title if get_method(method).peft else _form(method)
    forms = {"kohya": (form,), "diffusers": (form,), "peft": (native,), "merged": ("folder", "single file")}
    return [row for row in TABLE if family in row.bases and row.form in forms[row.format]]


def incompatible_programs(method: str, format: str, family: str = "sd") -> list[str]:
    """One line per program that loads a method's adapters for a family wrongly from this format."""
    expected = expected_exports(method, family)
    rows = [row for row in expected if row.format == format and row.loads in (WRONGLY, UNUSABLE)]
    return [f"{row.program}: {row.verdict} ({row.how})" for row in rows]


@functools.cache
def _form(method: str) -> str:
    """ "LoRA", or "DoRA" if the method scales outputs, as a tiny adapter of the method shows."""
    adapter = get_method(method).build(get_method(method).parse({"rank": 2}), 4, 4, torch.Generator())
    return "LoRA" if adapter.low_rank(torch.eye(4)).scale is None else "DoRA"


def verdict(exported: Exported, row: Row) -> str:
    """How a program loads this export. A truncated LoRA is never exact."""
    if row.loads == EXACTLY and exported.error > 0:
        return f"approximately, error {exported.error:.1%}"
    return row.verdict


def lines(exported: Exported) -> list[str]:
    """One line per program on how it loads this export, and on the settings for a merged file's noise process."""
    programs = [f"{row.program}: {verdict(exported, row)} ({row.how})" for row in rows(exported)]
    settings = noise_settings(exported)
    return programs + [f"{program}, for the noise process: {text}" for program, text in settings.items()]


def noise_settings(exported: Exported) -> dict[str, str]:
    """The settings, by program, with which it uses the noise process of a merged single file.

    Sources: diffusers 0.42 (loaders/single_file_utils.py: the configuration of the released base),
    ComfyUI a125cd84 (comfy/supported_models.py), AUTOMATIC1111 1.10.1 (modules/sd_models_config.py) and its pull
    requests 16567 and 16569, Forge dfdcbab6 (backend/loader.py), InvokeAI 8e71a8a5 (model_manager/configs/main.py),
    sd-scripts 48d368fa (library/train_util.py).
    """
    process, version = exported.process, exported.version
    if process is None or not version:
        return {}
    velocity, zero_snr = process.prediction_type == "v_prediction", process.zero_snr
    nonstandard = velocity != (version == "SD 2")  # not the prediction type of the released base model
    settings = {}
    if nonstandard or zero_snr:
        options = f'clip_sample=False, prediction_type="{process.prediction_type}"'
        options += ', rescale_betas_zero_snr=True, timestep_spacing="trailing"' if zero_snr else ""
        settings["diffusers"] = f"pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, {options})"
        setting = f"set the model's Prediction Type to {process.prediction_type}" if nonstandard else ""
        missing = "it has no zero terminal SNR" if zero_snr else ""
        settings["InvokeAI"] = "; ".join(filter(None, [setting, missing]))
    if (zero_snr and version != "SDXL") or (velocity and version == "SD 1"):
        settings["ComfyUI"] = f"the node ModelSamplingDiscrete with v_prediction and zsnr {'on' if zero_snr else 'off'}"
    if velocity and version != "SD 2":
        yaml = "sd_xl_v.yaml of its dev branch" if version == "SDXL" else "v1-inference.yaml with parameterization: v"
        settings["AUTOMATIC1111"] = f"a copy of {yaml} beside the file, under its name"
        settings["Forge"] = "" if version == "SDXL" else settings["AUTOMATIC1111"]
    if zero_snr:
        setting = "Settings, Noise schedule for sampling: Zero Terminal SNR"
        settings["AUTOMATIC1111"] = "; ".join(filter(None, [settings.get("AUTOMATIC1111"), setting]))
    if velocity:
        settings["sd-scripts"] = "--v_parameterization" + " --zero_terminal_snr" * zero_snr
    return {program: text for program, text in settings.items() if text}


def advice(info: AdapterInfo) -> list[str]:
    """Advice on using an adapter's export in other programs."""
    lines = [f'In prompts the subject is "{subject}".' for subject in info.all_subjects if str(subject)]
    if issubclass(get_method(info.method).config, ReflectionConfig | BlockConfig):
        lines.append(
            f"Exact on {info.base} only: the file was computed from its weights. Other programs interpolate "
            "linearly between strengths, which is not a rotation; for strength 0.7 export NAME:0.7."
        )
    return lines


_SD_SCRIPTS = re.compile(r"(.*\.)?((attentions|resnets|downsamplers|upsamplers)\.\d+|self_attn|mlp)\..+")
"""diffusers' paths of the layers that sd-scripts' ``networks.lora`` creates (48d368fa, networks/lora.py)."""


_FLUX2_DIFFUSERS = re.compile(
    r"(single_)?transformer_blocks\..+|x_embedder|context_embedder|time_guidance_embed\.timestep_embedder\..+|proj_out"
)
"""FLUX.2's layers that diffusers loads from kohya's files (0.42, loaders/lora_conversion_utils.py:
``_convert_kohya_flux2_lora_to_diffusers``)."""


def notes(pipe: DiffusionPipeline, name: str, exported: Exported) -> list[str]:
    """What some programs don't load of this export of the adapter ``name``, and what to do."""
    return [*_embedding_notes(pipe, name, exported), *_layer_notes(pipe, name, exported)]


def _embedding_notes(pipe: DiffusionPipeline, name: str, exported: Exported) -> list[str]:
    """How to use the trained embeddings of the adapter's triggers."""
    files = ", ".join(path.name for path in exported.embeddings)
    where = f"{files}: put it where the program keeps embeddings (textual inversion)" if files else "in the file itself"
    return [
        f"The embedding of “{trigger}” is {where}; write “{word}” in place of “{trigger}” in prompts."
        for word, trigger in textual_inversion.words(pipe, name).items()
    ]


def _layer_notes(pipe: DiffusionPipeline, name: str, exported: Exported) -> list[str]:
    if exported.format == "kohya" and exported.family in _UNETS:
        models = pipeline.components(pipe)
        layers = {key: list(own) for key, own in attachment.layers_by_component(models, name).items()}
        encoders = [paths for key, paths in layers.items() if key != "unet" and checkpoint.is_open_clip(models[key])]
        return [*_not_in_sd_scripts(layers), *_not_in_automatic1111(encoders)]
    if exported.format == "kohya" and exported.family in _FLUX2:
        return _not_in_diffusers(attachment.adapter_layers(pipe.transformer, name))
    if exported.format == "merged" and exported.path.suffix == ".safetensors":
        return _missing_text_layer(exported)
    return []


def _not_in_sd_scripts(layers: dict[str, list[str]]) -> list[str]:
    paths = [f"{part}.{path}" for part, paths in layers.items() for path in paths if not _SD_SCRIPTS.fullmatch(path)]
    if not paths:
        return []
    return [
        f"sd-scripts (networks.lora) never loads these layers of the file: {', '.join(paths)}; use --format merged."
    ]


def _not_in_diffusers(paths: Iterable[str]) -> list[str]:
    lost = [path for path in paths if not _FLUX2_DIFFUSERS.fullmatch(path)]
    if not lost:
        return []
    return [f"diffusers never loads these layers of the file: {', '.join(lost)}; use --format diffusers."]


def _not_in_automatic1111(encoders: list[list[str]]) -> list[str]:
    """Source: ``network_apply_weights`` in extensions-builtin/Lora/networks.py of AUTOMATIC1111 1.10.1."""
    incomplete = 0
    for paths in encoders:
        projections = defaultdict(set)
        for path in paths:
            attention, _, projection = path.rpartition(".")
            projections[attention].add(projection)
        incomplete += sum(len(found) < 4 for attention, found in projections.items() if attention.endswith("self_attn"))
    if not incomplete:
        return []
    return [
        f"AUTOMATIC1111 changes an OpenCLIP attention only if q, k, v and out are all in the file: it ignores "
        f"{incomplete} of this adapter's; use --format merged."
    ]


def _missing_text_layer(exported: Exported) -> list[str]:
    with safe_open(exported.path, "pt") as file:
        layers = {found[1] for key in file.keys() if (found := re.match(checkpoint_keys.SD2_LAYER, key))}  # noqa: SIM118
    if len(layers) != 23:
        return []
    return [
        "The file holds 23 of OpenCLIP's 24 text layers, as its base does: ComfyUI warns of missing keys. "
        "Stable Diffusion 2 does not use the last layer, so images are the same."
    ]


def markdown() -> str:
    """The table in Markdown."""
    head = ["| base | `--format` | as a | in | loads | how |", "|---|---|---|---|---|---|"]
    rows = [f"{_TITLES[r.bases]} | {r.format} | {r.form} | {r.program} | {r.verdict} | {r.how}" for r in TABLE]
    return "\n".join(head + [f"| {row} |" for row in rows])
