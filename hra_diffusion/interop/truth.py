"""What loads where: the rows that an export prints. The tests load every row they can, and the README has them all."""

import functools
from dataclasses import dataclass
from typing import cast

import torch

from hra_diffusion.adapter_file import AdapterInfo
from hra_diffusion.interop.exports import Exported
from hra_diffusion.parts import ReflectionConfig
from hra_diffusion.registry import AdapterModule, get

EXACTLY, WRONGLY, BY_FORMAT, BY_SOURCE = "exactly", "not exactly", "by file format", "not exactly, by its source"


@dataclass(frozen=True)
class Row:
    """How one program takes one form of one format. "exactly" and "not exactly" are what the test suite finds when that
    program's own loader reads the file; where it can't be run here, what its format or its source says."""

    format: str
    form: str
    program: str
    loads: str
    how: str


_UIS = "AUTOMATIC1111, Forge, ComfyUI, InvokeAI, sd-scripts"
_OTHER_NORM = "it divides by another norm than DoRA's; --lora-rank N, or --format merged"
TABLE = (
    Row("kohya", "LoRA", "diffusers", EXACTLY, "pipe.load_lora_weights(file)"),
    Row("kohya", "LoRA", "LyCORIS", EXACTLY, "its kohya loader (SD 1 and 2)"),
    Row("kohya", "LoRA", _UIS, BY_FORMAT, "put it in the LoRA folder"),
    Row("kohya", "DoRA", "LyCORIS", EXACTLY, "its kohya loader (SD 1 and 2)"),
    Row("kohya", "DoRA", "diffusers", WRONGLY, "it drops the magnitudes; --format diffusers"),
    Row("kohya", "DoRA", "AUTOMATIC1111, Forge, ComfyUI", BY_SOURCE, _OTHER_NORM),
    Row("diffusers", "LoRA", "diffusers", EXACTLY, "pipe.load_lora_weights(folder)"),
    Row("diffusers", "DoRA", "diffusers", EXACTLY, "pipe.load_lora_weights(folder)"),
    Row("peft", "HRA", "PEFT", EXACTLY, "PeftModel.from_pretrained(pipe.unet, folder/unet)"),
    Row("peft", "LoRA", "PEFT", EXACTLY, "PeftModel.from_pretrained(pipe.unet, folder/unet)"),
    Row("peft", "DoRA", "PEFT", EXACTLY, "PeftModel.from_pretrained(pipe.unet, folder/unet)"),
    Row("merged", "folder", "diffusers", EXACTLY, "from_pretrained(folder)"),
    Row("merged", "single file", "diffusers", EXACTLY, "from_single_file(file)"),
    Row("merged", "single file", _UIS, BY_FORMAT, "put it in the checkpoint folder"),
)


def rows(exported: Exported) -> list[Row]:
    """The rows that are about what was written."""
    form = exported.form
    if exported.format == "merged":
        form = "single file" if exported.path.suffix == ".safetensors" else "folder"
    return [row for row in TABLE if (row.format, row.form) == (exported.format, form)]


def foreseen(method: str) -> list[Row]:
    """The rows that are about what a method's adapters can be written as, whole and at strength 1."""
    form, native = _form(method), get(method).title if get(method).peft else _form(method)
    forms = {"kohya": (form,), "diffusers": (form,), "peft": (native,), "merged": ("folder", "single file")}
    return [row for row in TABLE if row.form in forms[row.format]]


@functools.cache
def _form(method: str) -> str:
    """A plain LoRA, or a DoRA where the method scales outputs: as a tiny adapter of it says."""
    adapter = cast(AdapterModule, get(method).build(get(method).parse({"rank": 2}), 4, 4, torch.Generator()))
    return "LoRA" if adapter.low_rank(torch.eye(4)).scale is None else "DoRA"


def verdict(exported: Exported, row: Row) -> str:
    """What a program makes of this very export; a cut LoRA is never exact."""
    if row.loads == EXACTLY and exported.error > 0:
        return f"approximately, error {exported.error:.1%}"
    return row.loads


def lines(exported: Exported) -> list[str]:
    """What each program makes of this export, for reading."""
    loads = [f"{row.program}: {verdict(exported, row)} ({row.how})" for row in rows(exported)]
    needs = noise_settings(exported)
    return loads + [f"{program}, for the noise process: {what}" for program, what in needs.items()]


def noise_settings(exported: Exported) -> dict[str, str]:
    """What a person must set, by program, so that it draws a merged single file by the right noise process.

    By these programs' sources: diffusers 0.42 (loaders/single_file_utils.py: the configuration of the released base),
    ComfyUI a125cd84 (comfy/supported_models.py), AUTOMATIC1111 1.10.1 (modules/sd_models_config.py) and its pull
    requests 16567 and 16569, Forge dfdcbab6 (backend/loader.py), InvokeAI 8e71a8a5 (model_manager/configs/main.py),
    sd-scripts 48d368fa (library/train_util.py).
    """
    process, version = exported.process, exported.version
    if process is None or not version:
        return {}
    velocity, zero_snr = process.prediction_type == "v_prediction", process.zero_snr
    unusual = velocity != (version == "SD 2")  # another prediction type than the released base's
    needs = {}
    if unusual or zero_snr:
        options = f'clip_sample=False, prediction_type="{process.prediction_type}"'
        options += ', rescale_betas_zero_snr=True, timestep_spacing="trailing"' if zero_snr else ""
        needs["diffusers"] = f"pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, {options})"
        setting = f"set the model's Prediction Type to {process.prediction_type}" if unusual else ""
        missing = "it has no zero terminal SNR" if zero_snr else ""
        needs["InvokeAI"] = "; ".join(filter(None, [setting, missing]))
    if (zero_snr and version != "SDXL") or (velocity and version == "SD 1"):
        needs["ComfyUI"] = f"the node ModelSamplingDiscrete with v_prediction and zsnr {'on' if zero_snr else 'off'}"
    if velocity and version != "SD 2":
        yaml = "sd_xl_v.yaml of its dev branch" if version == "SDXL" else "v1-inference.yaml with parameterization: v"
        needs["AUTOMATIC1111"] = f"a copy of {yaml} beside the file, under its name"
        needs["Forge"] = "" if version == "SDXL" else needs["AUTOMATIC1111"]
    if zero_snr:
        setting = "Settings, Noise schedule for sampling: Zero Terminal SNR"
        needs["AUTOMATIC1111"] = "; ".join(filter(None, [needs.get("AUTOMATIC1111"), setting]))
    if velocity:
        needs["sd-scripts"] = "--v_parameterization" + " --zero_terminal_snr" * zero_snr
    return {program: what for program, what in needs.items() if what}


def advice(info: AdapterInfo) -> list[str]:
    """What to know before using an adapter's export elsewhere."""
    lines = [f'In prompts the subject is "{info.subject}".'] if info.subject else []
    if issubclass(get(info.method).config, ReflectionConfig):
        lines.append(
            f"Exact on {info.base} only: the file was computed from its weights. At strengths other than 1 other tools "
            "blend linearly and leave the rotations; export NAME:0.7 to have 0.7 on them."
        )
    return lines


def markdown() -> str:
    """The whole table as the README has it."""
    head = ["| `--format` | as a | in | loads | how |", "|---|---|---|---|---|"]
    return "\n".join(head + [f"| {r.format} | {r.form} | {r.program} | {r.loads} | {r.how} |" for r in TABLE])
